"""An image file becomes what the network sees: 32x32 pixels in three colours."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SIZE = 32


class ImageError(ValueError):
    """A file is no readable image; the message names it."""


def read_image(path: str | Path) -> Tensor:
    """Reads an image of any size and mode.

    It is turned as its EXIF data says, put on white where it is transparent, scaled so that its
    shape is kept and its shorter side has 32 pixels, and cropped to its middle.

    Args:
        path: A file in any format that Pillow reads.

    Returns:
        ``(3, 32, 32)`` uint8.

    Raises:
        ImageError: If the file is missing, damaged or no image.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image = ImageOps.fit(_to_rgb(image), (SIZE, SIZE), Image.Resampling.BICUBIC)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}: check the path") from error
    except Exception as error:  # damage surfaces as whatever the decoder trips over first
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ImageError(f"{path} is no readable image ({reason})") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits of grey
        levels = np.asarray(image, dtype=np.float64)
        top = 65535 if levels.max() > 255 else 255
        image = Image.fromarray((levels.clip(0, top) * (255 / top)).astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
