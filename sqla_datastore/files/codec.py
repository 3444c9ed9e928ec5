"""Files: their bytes as they are, and name, content type and SHA-256 in the node."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from sqla_datastore.codecs import Codec, Decoder, Description, Encoder
from sqla_datastore.codecs.protocol import JSON
from sqla_datastore.files.file import File
from sqla_datastore.files.names import UNKNOWN, base_name, is_content_type
from sqla_datastore.files.stored import stored_content
from sqla_datastore.format import StoredBlob

_SHA256 = re.compile("[0-9a-f]{64}")


class _FileCodec:
    """Files. A decoded one has read nothing but its node."""

    name: ClassVar[str] = "files.file"
    version: ClassVar[int] = 1
    mutable: ClassVar[bool] = False

    def types(self) -> tuple[type, ...]:
        return (File,)

    def takes(self, value: object) -> bool:  # noqa: ARG002
        return False

    def encode(self, value: File, encoder: Encoder) -> JSON:
        # an encoder tells the place only through its errors
        place = getattr(encoder.unsupported(value, ""), "entry", None)
        payload = value._payload(str(place))
        return {
            "name": value.name,
            "content_type": value.content_type,
            "sha256": payload.sha256,
            "blob": encoder.blob(payload),
        }

    def decode(self, node: Any, version: int, decoder: Decoder) -> File:  # noqa: ARG002
        match node:
            case {"name": str(name), "content_type": str(kind), "sha256": str(sha256)}:
                if _SHA256.fullmatch(sha256):
                    return self._decoded(name, kind, sha256, decoder.later(node.get("blob")))
        raise decoder.damaged("a file has no name, content type or SHA-256")

    def _decoded(self, name: str, kind: str, sha256: str, blob: Any) -> File:
        assert isinstance(blob, StoredBlob)
        origin = blob.source.origin
        blocks = origin is not None and origin.would_block_a_loop
        content = stored_content(blob, sha256, blocks_a_loop=blocks)
        return File._of(content, base_name(name), kind if is_content_type(kind) else UNKNOWN)

    def describe(self, node: Any) -> Description:
        known = node if isinstance(node, dict) else {}
        kind = known.get("content_type")
        shown = kind if isinstance(kind, str) else None
        return Description("File", shown, file_name=base_name(known.get("name")))

    def describe_value(self, value: File) -> Description:
        """Return what `inspect` tells of one that is in memory."""
        try:
            size = value.size_bytes
        except (OSError, ValueError):  # its path or stream is gone
            size = None
        return Description("File", value.content_type, nbytes=size or 0, file_name=value.name)


CODECS: tuple[Codec, ...] = (_FileCodec(),)
