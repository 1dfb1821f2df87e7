"""Find the model a recipe names: the bundled one, a folder, a file or a hub id. No torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from llmopt.artifact import folder_of
from llmopt.caches import cache_folder
from llmopt.errors import LlmoptError, RequestError
from llmopt.formats.kind import model_folder
from llmopt.formats.side_files import NOT_FETCHED
from llmopt.specs import KindSpec
from llmopt.specs.base import shortened
from llmopt.specs.kinds import kind_of_file, model_files

DEMO_MODEL = Path(__file__).parent / "demo" / "model"
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


@dataclass(frozen=True)
class ModelSource:
    """`name` is what manifests say: a hub id, `demo`, or a folder's own name, never its path."""

    name: str
    folder: Path
    revision: str | None = None


def resolve(model: str, revision: str | None = None, *, fetch: bool = True) -> ModelSource:
    """The folder that holds `model`; a hub id is downloaded if `fetch`, else only looked up.

    For a file it is the artifact that stands behind it, or a folder among the caches with a
    config, a tokenizer and a link to it.
    Raises RequestError for a model that is nowhere, LlmoptError where the hub cannot be reached.
    """
    if revision is not None and (model == "demo" or os.path.lexists(Path(model).expanduser())):
        raise RequestError(
            f"{model} is no model on the hub, and has no revision {shortened(revision)!r}",
            hint="leave the revision out",
        )
    if model == "demo":
        return ModelSource("demo", DEMO_MODEL)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return ModelSource(folder.resolve().name, folder)
    kind = kind_of_file(folder)
    if folder.is_file() and kind is not None:
        return ModelSource(folder.stem, _behind(folder, kind))
    if folder.is_file():
        others = "".join(f", or a {end}" for end in model_files())
        raise RequestError(
            f"{model} is a file; a model is a folder with config.json and safetensors{others}",
            hint="name the folder it lies in",
        )
    if os.path.lexists(folder):
        what = "neither a folder nor a file" if folder.exists() else "a link that leads nowhere"
        raise RequestError(f"{model} is {what}")
    if folder.is_absolute() or model.startswith(("./", "../", "~")) or not _HUB_ID.match(model):
        raise RequestError(f"there is no model folder {model}")
    if kind is not None:
        raise RequestError(f"there is no file {model}")
    return _from_hub(model, revision, fetch)


def _behind(file: Path, kind: KindSpec) -> Path:
    """The folder to read for a file: the artifact's that it stands for, or one among the caches."""
    own = folder_of(file)
    inside = own / kind.files[file.suffix]
    if inside.is_file() and file.samefile(inside):
        return own
    return model_folder(kind, file, cache_folder())


def _from_hub(model: str, revision: str | None, fetch: bool) -> ModelSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = snapshot_download(
            model,
            revision=revision,
            ignore_patterns=list(NOT_FETCHED),
            local_files_only=not fetch,
        )
    except RevisionNotFoundError:
        raise RequestError(f"{model} has no revision {revision!r} on the hub") from None
    except RepositoryNotFoundError:
        raise RequestError(
            f"{model} is neither a folder here nor a model on the hub that you may read",
            hint="check the spelling; for a private model set HF_TOKEN",
        ) from None
    except LocalEntryNotFoundError:
        raise _unreachable(model, fetch) from None
    except (HfHubHTTPError, OSError) as error:
        raise LlmoptError(
            f"downloading {model} from the hub failed: {_first_line(error)}", hint="try again"
        ) from None
    folder = Path(path)
    return ModelSource(model, folder, folder.name)


def _unreachable(model: str, fetch: bool) -> LlmoptError:
    place = f"{model} is not a folder here and is not in the local hub cache"
    if not fetch:
        return RequestError(place, hint=f"fetch it first: hf download {model}")
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
    return RequestError(f"{place}, and {why}", hint="name a local folder, or mend the network")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
