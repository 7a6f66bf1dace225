"""The name of a class or a file, which may hold any character, as it can be printed anywhere."""


def printable(name: str) -> str:
    """Writes what is no character, or would break the line, by its number."""
    known = name.encode("utf-8", "backslashreplace").decode()  # a name need not be UTF-8
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in known)
