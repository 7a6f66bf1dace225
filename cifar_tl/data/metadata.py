"""What an image file says beside its pixels: how to turn them; of the rest Pillow is told nothing.

Pillow warns of what is damaged there, and warnings belong to the whole process: nobody can silence
or name them for one file that is read in one thread of many.
"""

import re
import struct

from PIL import Image, ImageOps, TiffImagePlugin, TiffTags

_ORIENTATION = 274  # the EXIF tag that says how to turn the image, with a number of these
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What the pixels of a TIFF file need, and the bytes that a value takes by its type:
# https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf
_PIXEL_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323),
    *(324, 325, 332, 338, 339, 340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529),
    *(530, 531, 532, 700),  # 700: XMP, which may say how to turn it
}
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


def without_metadata(content: bytes) -> bytes:
    """Drops from a PNG or TIFF file what its first image does not need; others stay as they are.

    Raises:
        ValueError: If it is a TIFF file in which nothing can be found.
    """
    if content.startswith(b"\x89PNG\r\n\x1a\n") and b"acTL" in content:
        return _without_animation(content)
    if content.startswith(tuple(TiffImagePlugin.PREFIXES)):
        return _with_pixel_tags(content)
    return content


def _without_animation(content: bytes) -> bytes:
    kept, place = [content[:8]], 8
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind not in (b"acTL", b"fcTL", b"fdAT"):
            kept.append(content[place : place + length + 12])
        place += length + 12
    return b"".join(kept)


def _with_pixel_tags(content: bytes) -> bytes:
    """Packs the first folder of a TIFF file: the well-formed entries that its pixels need."""
    order, big = "<" if content[:2] == b"II" else ">", content[2] == 43  # as Pillow tells BigTIFF
    place, number, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    width, step = struct.calcsize(f"={place}"), struct.calcsize(f"={entry}")
    try:
        (start,) = struct.unpack_from(order + place, content, width)
        (entries,) = struct.unpack_from(order + number, content, start)
    except struct.error as error:
        raise ValueError("damaged TIFF file: its tags are not where it says") from error
    first, kept, total = start + struct.calcsize(f"={number}"), [], 0
    for at in range(first, first + step * min(entries, (len(content) - first) // step), step):
        tag, kind, count, value = struct.unpack_from(order + entry, content, at)
        size = count * _BYTES.get(kind, 0)
        if tag not in _PIXEL_TAGS or not size:
            continue
        if size > width:
            (offset,), total = struct.unpack(order + place, value), total + size
            if max(offset + size, total) > len(content):
                continue
        if count > 1 and kind not in (1, 2, 7) and TiffTags.lookup(tag).length == 1:
            if size > width:  # Pillow takes the first of them
                value = content[offset : offset + width]
            count = 1
        kept.append(struct.pack(order + entry, tag, kind, count, value))
    folder = struct.pack(order + number, len(kept)) + b"".join(kept) + bytes(width)
    return content[:start] + folder + content[start + len(folder) :]


def turn(image: Image.Image) -> Image.Image:
    """Turns an image as its metadata say; Pillow's function warns of what is damaged in them."""
    if image.format == "TIFF":
        return ImageOps.exif_transpose(image)
    image.load()  # a PNG may say it at its end
    exif = image.info.get("exif") or b""
    if profile := image.info.get("Raw profile type exif"):  # as ImageMagick writes it
        exif = exif or bytes.fromhex("".join(profile.split("\n")[3:]))
    orientation = _orientation(exif)
    if orientation is None:
        found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', image.info.get("xmp") or b"")
        orientation = int(found[1]) if found else 1
    method = _TURNS.get(orientation)
    return image if method is None else image.transpose(method)


def _orientation(exif: bytes) -> int | None:
    """Reads the orientation in EXIF data, if it is there."""
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "<")
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, start)
        for place in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", data, place)
            if tag == _ORIENTATION:
                value = struct.unpack_from(order + ("I" if kind == 4 else "H"), data, place + 8)
                return int(value[0])
    except struct.error:
        pass
    return None
