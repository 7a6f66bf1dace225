"""An image file becomes what the network sees: 32x32 pixels in three colours."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

SIZE = 32
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class ImageError(ValueError):
    """A file is no readable image; the message names it."""


def is_image_file(path: str | Path) -> bool:
    """Tells by its name whether a file is one of the images of a folder; hidden ones are not."""
    path = Path(path)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def read_images(paths: Sequence[str | Path], *, progress: bool = False) -> Tensor:
    """Reads many images as `read_image` does, several at a time.

    Args:
        paths: The N files.
        progress: Show a bar on standard error.

    Returns:
        ``(N, 3, 32, 32)`` uint8.

    Raises:
        ImageError: If some cannot be read; the message names all of these.
    """
    images = torch.empty(len(paths), 3, SIZE, SIZE, dtype=torch.uint8)

    def read(number: int) -> str | None:
        try:
            images[number] = read_image(paths[number])
        except ImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as executor:
        try:
            done = executor.map(read, range(len(paths)))
            if progress:
                done = iter(tqdm(done, "images", len(paths), leave=False, ascii=True))
            damaged = [reason for reason in done if reason is not None]
        except BaseException:  # Ctrl-C must not wait for all of them
            executor.shutdown(cancel_futures=True)
            raise
    if damaged:
        raise ImageError(
            f"{len(damaged)} of {len(paths):,} images cannot be read, repair, replace or delete "
            f"them: {'; '.join(damaged)}"
        )
    return images


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
            opened.draft(None, (8 * SIZE, 8 * SIZE))  # decodes a large JPEG smaller, so faster
            image = ImageOps.exif_transpose(opened)
            image = ImageOps.fit(_to_rgb(image), (SIZE, SIZE), Image.Resampling.BICUBIC)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}: check the path") from error
    except MemoryError:
        raise
    except Exception as error:  # damage surfaces as whatever the decoder trips over first
        reason = str(error).partition("\n")[0] or type(error).__name__
        reason = reason.replace(f" {str(path)!r}", "")  # it is named already
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
