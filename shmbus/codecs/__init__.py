"""Codecs beside the built-in ones, each a plugin and an extra: arrow, avro, protobuf.

- CodecPlugin, Coding: the contract (`shmbus.testing.codec_conformance` says whether one is kept)
- avro, protobuf, arrow: the plugins that we bring
"""

from __future__ import annotations

from shmbus._schema.foreign import CodecName, CodecPlugin, Coding

__all__ = ["CodecName", "CodecPlugin", "Coding"]
