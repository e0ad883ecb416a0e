"""`python -m gating.push RUN REPO`: a run's directions, rates and card, to a dataset repository of the hub."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gating import cli, extras, store
from gating.errors import GatingError, choices, naming
from gating.foreign import shown
from gating.reporting import published_run

REPO = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)


def prepared(run: str, answers: bool) -> tuple[Path, list[str]]:
    """The folder `push` beside a run's store, made again, and its files."""
    tree, folder = store.open_run(run), store.locate(run).parent / "push"
    with naming(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder, published_run.write(tree, folder, answers)


def push(folder: Path, files: Sequence[str], repo: str, public: bool = False, force: bool = False) -> str:
    """Upload a prepared folder as one commit; the repository's address. A repository that is not there is made,
    private unless `public`.

    Raises GatingError for one that is more or less open than was said, files that are there already (unless `force`),
    and whatever the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    api: Any = HfApi()
    known = {"repo_id": repo, "repo_type": "dataset"}
    try:
        try:
            before: Any = api.repo_info(**known)
        except RepositoryNotFoundError:
            api.create_repo(**known, private=not public)
            before = api.repo_info(**known)
        if bool(before.private) == public:
            raise GatingError(
                f"{repo} is {'private' if before.private else 'public'} on the hub, and this push "
                f"{'is for a public one (--public)' if public else 'is for a private one'}; change it there, or "
                f"{'leave --public out' if public else 'say --public'}."
            )
        there = set(files) & {f.rfilename for f in before.siblings or ()}
        if there and not force:
            raise GatingError(f"{repo} has {choices(sorted(there))} already; give another REPO, or --force to replace.")
        done = api.upload_folder(
            **known, folder_path=folder, allow_patterns=list(files), commit_message="A run of gating",
            parent_commit=before.sha,
        )  # fmt: skip
        return str(done.repo_url if hasattr(done, "repo_url") else repo)
    except OfflineModeIsEnabled:
        raise GatingError(f"{repo}: HF_HUB_OFFLINE is set, and a push needs the hub; unset it, or --dry-run.") from None
    except (HfHubHTTPError, OSError, ValueError) as e:
        status = getattr(getattr(e, "response", None), "status_code", "")
        why = f"{type(e).__name__}{f', HTTP {status}' if status else ''}"
        raise GatingError(
            f"{repo}: the hub did not take it ({why}); `hf auth login` or HF_TOKEN with the right to write there, "
            "and give the same command again."
        ) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Upload a run's directions, rates and card to a dataset repository of the Hugging Face hub, private by default."""
    parser = argparse.ArgumentParser(prog="python -m gating.push", description=main.__doc__)
    parser.add_argument("run", help="a run's folder")
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME on the hub; made where it is not there")
    parser.add_argument("--answers", action="store_true", help="prompts and answers too, to a private repository alone")
    parser.add_argument("--public", action="store_true", help="to a repository that everybody can read")
    parser.add_argument("--force", action="store_true", help="replace files of the same names there")
    parser.add_argument("--dry-run", action="store_true", help="write the folder and say what would go")
    args = parser.parse_args(argv)
    with cli.spoken(Console()):
        if not REPO.fullmatch(args.repo):
            raise GatingError(f"REPO={shown(args.repo, 120)!r} is not OWNER/NAME of a dataset repository; write that.")
        if args.answers and args.public:
            raise GatingError("--answers --public: answers to harmful requests go to a private repository alone.")
        folder, files = prepared(args.run, args.answers)
        for name in files:
            print(f"{'would go' if args.dry_run else 'file'}: {name} ({(folder / name).stat().st_size:,} bytes)")
        print(f"folder: {folder}", flush=True)
        if not args.dry_run:
            extras.require("huggingface_hub", "gating.push")
            print(f"repository: {push(folder, files, args.repo, args.public, args.force)}", flush=True)


if __name__ == "__main__":
    main()
