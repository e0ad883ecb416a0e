"""What lets NDIF 0.1.2 serve a model without a GPU and without the Hugging Face Hub. Runs inside the server only.

NDIF's own settings name the two actor classes (NDIF_MODEL_IMPORT_PATH, NDIF_CONTROLLER_IMPORT_PATH); nothing of NDIF is
patched but one call that disagrees with nnsight 0.8.1.
"""

import gc
import json
import os
from math import prod

import ray
from huggingface_hub import snapshot_download
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.mixins.remotable import Remotable
from safetensors import safe_open


def _local_parameter_count(repo_id, revision):
    """Parameters of a checkpoint in the cache: NDIF would ask the hub for them, to place the model."""
    folder = snapshot_download(repo_id, revision=revision, local_files_only=True)
    total = 0
    for name in os.listdir(folder):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(folder, name), "pt") as f:
                total += sum(prod(f.get_slice(k).get_shape()) for k in f.keys())  # noqa: SIM118 - not a mapping
    return total or None


def _offline():
    for name in ("describe_checkpoint", "max_tp_size"):  # ndif passes trust_remote_code, which nnsight 0.8.1 dropped
        original = getattr(Remotable, name).__func__

        def call(cls, *args, _original=original, trust_remote_code=None, **kwargs):
            return _original(cls, *args, **kwargs)

        setattr(Remotable, name, classmethod(call))
    HuggingFaceModel._hub_parameter_count = staticmethod(_local_parameter_count)


_offline()


@ray.remote(num_cpus=0, num_gpus=0, max_restarts=-1, resources={"head": 1})
class CPUController(_ControllerActor):
    def __init__(self, *args, **kwargs):
        import ndif_cpu  # noqa: F401 - Ray ships this class by value; the import applies _offline()

        super().__init__(*args, **kwargs)


class CPUModelDeployment(BaseModelDeployment):
    CACHEABLE = False

    def load_from_disk(self):
        limits = json.loads(os.environ.get("GATING_NDIF_TIMEOUTS", "{}"))  # {repo: seconds that one job may run}
        own = [seconds for repo, seconds in limits.items() if repo in self.model_key]
        if own:
            self.execution_timeout = own[0]
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    def cleanup(self):
        self.kill_switch.clear()
        self.kill_reason = None
        self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


@ray.remote(num_cpus=0, max_restarts=-1)
class CPUModelActor(CPUModelDeployment):
    pass
