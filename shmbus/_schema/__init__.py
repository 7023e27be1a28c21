"""Types on the wire: codecs, descriptions of schemas, and how two of them compare."""
