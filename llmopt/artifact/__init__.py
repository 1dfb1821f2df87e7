"""Artifacts: what a step leaves behind, and how it comes to stand there whole or not at all.

An artifact is a folder that its engine wants, plus llmopt.json (the manifest: deterministic, in
no part of it a path or a time), README.md (the card, which the manifest implies; its own digest is
there) and llmopt.run.json (times, speeds, machine; enters no digest).
A folder with a manifest is complete: the manifest is written last, and a rename publishes it.

Two digests: `digest` covers the content files, and keys are made of it; `manifest_digest` covers
the manifest, that list of files included, so that nothing in it can be changed unseen.

Where a model is one file and the user names it (`-o model.gguf`), the artifact is the folder
`model.gguf.llmopt` beside it, and model.gguf is a hard link to the file in there.
"""

from llmopt.artifact.destination import (
    at,
    check_apart,
    check_destination,
    check_name,
    check_parent,
    check_replaceable,
    expose,
    file_of,
    folder_of,
    stands_for,
    strays,
    work_folder,
)
from llmopt.artifact.digests import (
    fingerprint,
    known_digest,
    open_artifact,
    write_cache,
)
from llmopt.artifact.documents import (
    JsonObject,
    canonical,
    finite,
    read_object,
    write_json,
    write_text,
)
from llmopt.artifact.files import (
    CARD,
    MANIFEST,
    RUN_RECORD,
    check_regular,
    content_files,
    describe_files,
    digest_of,
    entries,
    file_digest,
    hidden,
)
from llmopt.artifact.manifest import (
    MANIFEST_DIGEST,
    SCHEMA,
    Artifact,
    card_is_ours,
    card_missing,
    parse_manifest,
    read_manifest,
    seal_of,
    sealed,
    step_key,
    versions,
    write_records,
)
from llmopt.artifact.members import (
    CardEntry,
    FileEntry,
    GateEntry,
    ManifestJson,
    OriginalEntry,
    ParentEntry,
)
from llmopt.artifact.trust import check_trusted, contents_digest, trust
from llmopt.artifact.workspace import clean, complete, publish, workspace

__all__ = [
    "CARD",
    "MANIFEST",
    "MANIFEST_DIGEST",
    "RUN_RECORD",
    "SCHEMA",
    "Artifact",
    "CardEntry",
    "FileEntry",
    "GateEntry",
    "JsonObject",
    "ManifestJson",
    "OriginalEntry",
    "ParentEntry",
    "at",
    "canonical",
    "card_is_ours",
    "card_missing",
    "check_apart",
    "check_destination",
    "check_name",
    "check_parent",
    "check_regular",
    "check_replaceable",
    "check_trusted",
    "clean",
    "complete",
    "content_files",
    "contents_digest",
    "describe_files",
    "digest_of",
    "entries",
    "expose",
    "file_digest",
    "file_of",
    "fingerprint",
    "finite",
    "folder_of",
    "hidden",
    "known_digest",
    "open_artifact",
    "parse_manifest",
    "publish",
    "read_manifest",
    "read_object",
    "seal_of",
    "sealed",
    "stands_for",
    "step_key",
    "strays",
    "trust",
    "versions",
    "work_folder",
    "workspace",
    "write_cache",
    "write_json",
    "write_records",
    "write_text",
]
