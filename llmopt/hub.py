"""Upload an artifact to the Hugging Face hub: as it is on disk, whole, in one commit. No torch."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt import artifact
from llmopt.artifact import ManifestJson
from llmopt.errors import LlmoptError, RequestError
from llmopt.specs.kinds import kind_of
from llmopt.verification import verify


@dataclass(frozen=True)
class Pushed:
    """What stands on the hub now; `warnings` is what the hub said of the card."""

    url: str
    commit: str
    files: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where to: `repo` is `name` or `owner/name`; the branch is made where there is none."""

    repo: str
    private: bool = False
    branch: str | None = None
    token: str


def checked(folder: Path, *, failed_gate_ok: bool = False) -> ManifestJson:
    """The manifest of a model artifact that is as it was written, and fit to be given to others.

    Raises RequestError for what is no model of llmopt's or failed its gate, LlmoptError for one
    that is damaged.
    """
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}")
    manifest = artifact.parse_manifest(folder)
    if not manifest:
        raise RequestError(
            f"{folder} has no {artifact.MANIFEST}: only llmopt's artifacts can be pushed",
            hint="for other folders: hf upload REPO FOLDER",
        )
    kind = kind_of(manifest["format"])
    if kind.holds != "model":
        raise RequestError(f"{folder} holds no model, but {kind.title}")
    failed = [str(verdict["gate"]) for verdict in manifest["gates"] if not verdict["passed"]]
    if failed and not failed_gate_ok:
        raise RequestError(
            f"{folder} failed its quality gate: {'; '.join(failed)}",
            hint="--failed-gate-ok uploads it all the same; its card says that it failed",
        )
    problems = verify(folder)
    if problems:
        raise LlmoptError(f"{folder} is not what llmopt wrote: {'; '.join(problems)}")
    return manifest


def find_token(variable: str | None) -> str:
    """The token in an environment variable, or the one that huggingface_hub finds by itself."""
    if variable is not None:
        if named := os.environ.get(variable, "").strip():
            return named
        raise RequestError(f"the environment variable {variable} holds no token")
    from huggingface_hub import get_token

    if token := get_token():
        return token
    raise RequestError(
        "there is no token for the hub", hint="set HF_TOKEN, or log in: hf auth login"
    )


def push(
    folder: Path, manifest: ManifestJson, to: Destination, *, message: str, bars: bool
) -> Pushed:
    """Upload the files of a manifest from `checked`, its card and itself, in one commit.

    Files that an earlier push of an artifact left there and this one does not have are removed,
    others are let be. `bars` shows huggingface_hub's progress bars.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    names = sorted(file["path"] for file in manifest["files"])
    names += [artifact.CARD] if "card" in manifest else []
    names.append(artifact.MANIFEST)
    api = HfApi(token=to.token, library_name="llmopt")
    with _errors(to), _quiet(bars) as said:
        repo = _repository(api, to)
        stale = _left_behind(api, repo, to) - set(names)
        operations: list[Any] = [CommitOperationDelete(name) for name in sorted(stale)]
        operations += [CommitOperationAdd(name, folder / name) for name in names]
        done = api.create_commit(repo, operations, commit_message=message, revision=to.branch)
    tree = f"/tree/{to.branch}" if to.branch else ""
    return Pushed(f"{api.endpoint}/{repo}{tree}", str(done.oid), tuple(names), tuple(said))


def _repository(api: Any, to: Destination) -> str:
    """Make sure that the repository and branch exist; the repository's full name."""
    repo: str = api.create_repo(to.repo, private=to.private or None, exist_ok=True).repo_id
    if to.private and not api.repo_info(repo).private:
        raise RequestError(
            f"{repo} exists and is public: nothing was uploaded",
            hint="make it private in its settings, or push without --private",
        )
    if to.branch:
        api.create_branch(repo, branch=to.branch, exist_ok=True)
    return repo


def _left_behind(api: Any, repo: str, to: Destination) -> set[str]:
    """Files on the branch that the manifest of an earlier push lists."""
    there = set(api.list_repo_files(repo, revision=to.branch))
    if artifact.MANIFEST not in there:
        return set()
    with tempfile.TemporaryDirectory() as scratch:
        api.hf_hub_download(repo, artifact.MANIFEST, revision=to.branch, local_dir=scratch)
        return there & _listed(Path(scratch) / artifact.MANIFEST)


def _listed(manifest: Path) -> set[str]:
    """The files that a manifest of any llmopt lists; none where it is no such thing."""
    try:
        files = artifact.read_object(manifest).get("files")
    except RequestError:
        return set()
    rows = files if isinstance(files, list) else []
    return {str(row["path"]) for row in rows if isinstance(row, dict) and "path" in row}


@contextmanager
def _quiet(bars: bool) -> Iterator[list[str]]:
    """Keep huggingface_hub from writing to stderr; collects its warnings instead."""
    from huggingface_hub import utils

    library: Any = utils
    said: list[str] = []
    disabled, verbosity = library.are_progress_bars_disabled(), library.logging.get_verbosity()
    library.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            if not bars:
                library.disable_progress_bars()
            yield said
        said += [_line(warning.message) for warning in caught]
    finally:
        library.logging.set_verbosity(verbosity)
        if not (bars or disabled):
            library.enable_progress_bars()


@contextmanager
def _errors(to: Destination) -> Iterator[None]:
    """What can go wrong on the way, each as one sentence."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
    )

    # requests, httpx or httpx2, by the version of huggingface_hub: its own error's first base
    transport: Any = HfHubHTTPError.__bases__[0]
    try:
        yield
    except LlmoptError:
        raise
    except HFValidationError as error:
        raise RequestError(f"{to.repo!r} is no name of a repository: {_line(error)}") from None
    except OfflineModeIsEnabled:
        raise RequestError("HF_HUB_OFFLINE is set: nothing can be pushed") from None
    except HfHubHTTPError as error:
        raise _refused(to, error) from None
    except (transport, OSError) as error:
        raise _unreachable(error) from None
    except (ValueError, RuntimeError) as error:  # a card that is refused; a failed file upload
        raise _caused(to, error, HfHubHTTPError, transport) from None


def _caused(
    to: Destination, error: Exception, answered: type[Any], transport: type[Any]
) -> LlmoptError:
    """The error for one that huggingface_hub wrapped."""
    if isinstance(error.__cause__, answered) and not isinstance(error, ValueError):
        return _refused(to, error.__cause__)
    if isinstance(error.__cause__, transport | OSError) and not isinstance(error, ValueError):
        return _unreachable(error.__cause__)
    return LlmoptError(f"the hub refused the upload to {to.repo}: {_line(error)}")


def _refused(to: Destination, error: Any) -> LlmoptError:
    """The error for an answer of the hub that is not what was hoped for."""
    status = error.response.status_code if error.response is not None else 0
    if status == 401:
        return RequestError(
            "the hub does not accept the token", hint="make one with write access, set HF_TOKEN"
        )
    if status in (403, 404):
        reason = f": {_line(error.server_message)}" if error.server_message else ""
        return RequestError(
            f"the token may not write to {to.repo}{reason}",
            hint="name a repository of your own, and use a token with write access",
        )
    said = error.server_message or _line(error)
    return LlmoptError(
        f"the hub answered {status} to the upload to {to.repo}: {_line(said)}",
        hint="the same command goes on: what is there already is not sent again",
    )


def _unreachable(error: object) -> LlmoptError:
    return LlmoptError(
        f"the hub cannot be reached: {_line(error)}",
        hint="the same command goes on: what is there already is not sent again",
    )


def _line(what: object) -> str:
    return " ".join(str(what).split()) or type(what).__name__
