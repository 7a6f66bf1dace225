"""An image file becomes what the network sees: 32x32 pixels."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cifar_tl.data.examples import SIZE
from cifar_tl.errors import ImageError, first_line
from cifar_tl.progress import with_bar


def read_images(paths: Sequence[str | Path], *, progress: bool = False) -> Tensor:
    """Reads N images as `read_image` does, several at a time, into ``(N, 3, 32, 32)`` uint8.

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
            results = executor.map(read, range(len(paths)))
            bar = "images" if progress else None
            damaged = [
                reason for reason in with_bar(results, bar, len(paths)) if reason is not None
            ]
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
    """Reads an image file of any size and mode, in any format that Pillow reads.

    It is turned as its EXIF data says, put on white where it is transparent, scaled so that its
    shape is kept and its shorter side has 32 pixels, and cropped to its middle.

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
        reason = first_line(error).replace(f" {str(path)!r}", "")  # it is named already
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
