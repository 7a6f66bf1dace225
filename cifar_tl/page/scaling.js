// How a picture becomes the square that the network sees: as Pillow and cifar_tl/frame.py do it.
// A browser scales with filters of its own, so nothing here lets the browser scale.

const MOST_PIXELS = 89478485; // Pillow's limit
const STRIP = 2 ** 22; // pixels that are copied out of a picture at a time
const DECODED = 256; // a JPEG is never made smaller than this before it is scaled
const PRECISION = 22; // bits of Pillow's weights
const WHITE = 255;

/** What is wrong with a picture, in words that follow its name. */
class PictureError extends Error {}

/**
 * Decodes a file, in the colours that are in it. Without being asked, a browser turns the picture as
 * its EXIF data say.
 *
 * @param {Blob} blob
 * @returns {Promise<{bitmap: ImageBitmap, kind: {jpeg: boolean, deepGrey: boolean, deep: boolean}}>}
 */
async function decode(blob) {
  if (blob.size === 0) throw new PictureError("is empty.");
  let start;
  try {
    start = new Uint8Array(await blob.slice(0, 32).arrayBuffer());
  } catch {
    throw new PictureError("cannot be read. It may be a folder, or be gone.");
  }
  const text = String.fromCharCode(...start);
  try {
    const bitmap = await createImageBitmap(blob, {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
    if (await isTurnedWebP(blob, text)) {
      throw new PictureError("is WebP that its EXIF data turn. Browsers differ there: save it as JPEG.");
    }
    return { bitmap, kind: kindOf(start, text) };
  } catch (error) {
    throw error instanceof PictureError ? error : new PictureError(whyUnreadable(text));
  }
}

/** Finds out if EXIF data turn a WebP picture. Chromium does not turn it, and predict does. */
async function isTurnedWebP(blob, text) {
  if (!text.startsWith("RIFF") || text.slice(8, 12) !== "WEBP") return false;
  const view = new DataView(await blob.arrayBuffer());
  const name = (place) => String.fromCharCode(...new Uint8Array(view.buffer, place, 4));
  let place = 12;
  while (place + 8 <= view.byteLength && name(place) !== "EXIF") {
    const size = view.getUint32(place + 4, true);
    place += 8 + size + (size % 2);
  }
  if (place + 8 > view.byteLength) return false;
  let tiff = place + 8;
  if (name(tiff) === "Exif") tiff += 6; // some programs write the header of a JPEG's EXIF data
  const little = view.getUint16(tiff) === 0x4949;
  const first = tiff + view.getUint32(tiff + 4, little);
  for (let entry = 0; entry < view.getUint16(first, little); entry++) {
    const at = first + 2 + 12 * entry;
    const isOrientation = view.getUint16(at, little) === 0x0112;
    if (isOrientation) return view.getUint16(at + 8, little) > 1;
  }
  return false;
}

function kindOf(start, text) {
  const deep = text.startsWith("\x89PNG") && start[24] === 16; // bits a colour
  return { jpeg: text.startsWith("\xff\xd8\xff"), deep, deepGrey: deep && start[25] === 0 };
}

function whyUnreadable(text) {
  const save = "Save it as JPEG or PNG.";
  const brand = text.slice(4, 8) === "ftyp" ? text.slice(8) : "";
  if (/hei[cxms]|hev[cxms]|mif1|msf1/.test(brand)) {
    return `is HEIC, which this browser cannot read. ${save}`;
  }
  if (/avi[fs]/.test(brand)) return `is AVIF, which this browser cannot read. ${save}`;
  if (/^(II\*\0|MM\0\*)/.test(text)) return `is TIFF, which this browser cannot read. ${save}`;
  return `is no picture that this browser can read, or it is damaged. ${save}`;
}

/**
 * Scales a picture to what the network sees.
 *
 * @param {ImageBitmap} bitmap
 * @param {object} kind from `decode`
 * @param {{size: number, fit: string, padding: number[]}} frame
 * @param {number} white the value that is white in grey pictures of 16 bits
 * @returns {Uint8ClampedArray} size * size pixels, each red, green and blue
 */
function scale(bitmap, kind, frame, white) {
  if (kind.deepGrey && white !== 65535) {
    throw new PictureError(`has 16 bits, and to this model ${white} is white. Save it with 8 bits.`);
  }
  const picture = readerOf(bitmap, kind.jpeg ? jpegFraction(bitmap) : 1);
  const [shorter, longer] = [picture.width, picture.height].sort((a, b) => a - b);
  if (Math.max(shorter, 16) * longer > MOST_PIXELS) {
    throw new PictureError("has too many pixels. Make it smaller.");
  }
  const [box, width, height] = boxOf(picture, frame);
  const pixels = resize(picture, box, width, height);
  const dark = kind.deepGrey ? 16 : 63;
  if (kind.deep && pixels.every((value) => value <= dark)) {
    throw new PictureError("has 16 bits, and is dark or uses few of them. Save it with 8 bits.");
  }
  return withBorders(pixels, width, height, frame);
}

/** Which part of a picture is scaled, and to which width and height. */
function boxOf({ width, height }, { size, fit }) {
  if (fit === "crop") {
    const side = Math.min(width, height);
    const [left, top] = [(width - side) / 2, (height - side) / 2];
    return [{ left, top, right: left + side, bottom: top + side }, size, size];
  }
  const all = { left: 0, top: 0, right: width, bottom: height };
  if (fit === "squash") return [all, size, size];
  const longer = Math.max(width, height);
  const scaled = [width, height].map((side) => Math.max(1, roundHalfEven((size * side) / longer)));
  return [all, ...scaled];
}

/** Rounds as Python does: 2.5 to 2, 3.5 to 4. */
function roundHalfEven(value) {
  const down = Math.floor(value);
  const isHalf = value - down === 0.5;
  return isHalf ? down + (down % 2) : Math.round(value);
}

/** Pillow decodes a JPEG at a half, a quarter or an eighth, but not below 256 pixels a side. */
function jpegFraction({ width, height }) {
  const times = Math.floor(Math.min(width, height) / DECODED);
  return [8, 4, 2].find((fraction) => times >= fraction) ?? 1;
}

/**
 * Reads rectangles of a picture: red, green and blue, white where it is transparent.
 *
 * With a fraction of 2, 4 or 8, a pixel is the mean of as many pixels across and down. This is what
 * libjpeg computes when it decodes a picture smaller.
 */
function readerOf(bitmap, fraction) {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true });

  function readWhole(left, top, width, height) {
    canvas.width = width;
    canvas.height = height;
    context.fillStyle = "white"; // it shows where the picture is transparent
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, -left, -top);
    const { data } = context.getImageData(0, 0, width, height);
    if (data[3] !== 255) throw new PictureError("is too large for this browser. Make it smaller.");
    return data;
  }

  function read(left, top, width, height) {
    if (fraction === 1) return readWhole(left, top, width, height);
    const [x, y] = [left * fraction, top * fraction];
    const right = Math.min(bitmap.width, x + width * fraction);
    const bottom = Math.min(bitmap.height, y + height * fraction);
    return means(readWhole(x, y, right - x, bottom - y), right - x, bottom - y, fraction);
  }

  return {
    width: Math.ceil(bitmap.width / fraction),
    height: Math.ceil(bitmap.height / fraction),
    linesAtATime: (length) => Math.max(1, Math.floor(STRIP / (length * fraction * fraction))),
    read,
  };
}

/** The mean of each square of `fraction` x `fraction` pixels. At the edges a square is smaller. */
function means(data, width, height, fraction) {
  const [across, down] = [Math.ceil(width / fraction), Math.ceil(height / fraction)];
  const found = new Uint8ClampedArray(4 * across * down);
  for (let y = 0; y < down; y++) {
    for (let x = 0; x < across; x++) {
      const right = Math.min(width, (x + 1) * fraction);
      const bottom = Math.min(height, (y + 1) * fraction);
      let red = 0, green = 0, blue = 0;
      for (let row = y * fraction; row < bottom; row++) {
        for (let column = x * fraction; column < right; column++) {
          const place = 4 * (row * width + column);
          red += data[place];
          green += data[place + 1];
          blue += data[place + 2];
        }
      }
      const pixels = (right - x * fraction) * (bottom - y * fraction);
      found.set([red / pixels, green / pixels, blue / pixels, 255], 4 * (y * across + x));
    }
  }
  return found;
}

/**
 * Scales a part of a picture as Pillow does: rows, then columns, each rounded to 8 bits. Pillow 13
 * takes the columns of tall pictures first; 12 did so only where one side is 100 times the other.
 *
 * @returns {Uint8ClampedArray} width * height pixels of three colours
 */
function resize(picture, box, width, height) {
  const columns = bicubicWeights(picture.width, box.left, box.right, width);
  const rows = bicubicWeights(picture.height, box.top, box.bottom, height);
  const isTall = picture.height - height > Math.max(0, 2 * (picture.width - width));
  return (isTall ? columnsFirst : rowsFirst)(picture, columns, rows);
}

function rowsFirst(picture, columns, rows) {
  const [left, right] = extent(columns);
  const [top, bottom] = extent(rows);
  const [width, across] = [columns.length, right - left];
  const narrow = new Uint8ClampedArray(3 * width * (bottom - top));
  const strip = picture.linesAtATime(across);
  for (let y = top; y < bottom; y += strip) {
    const count = Math.min(strip, bottom - y);
    const data = picture.read(left, y, across, count);
    for (let row = 0; row < count; row++) {
      const start = 4 * (row * across - left);
      mix(data, start, 4, columns, narrow, 3 * width * (y - top + row), 3);
    }
  }
  const pixels = new Uint8ClampedArray(3 * width * rows.length);
  for (let x = 0; x < width; x++) {
    mix(narrow, 3 * (x - width * top), 3 * width, rows, pixels, 3 * x, 3 * width);
  }
  return pixels;
}

function columnsFirst(picture, columns, rows) {
  const [left, right] = extent(columns);
  const [top, bottom] = extent(rows);
  const [width, across] = [columns.length, right - left];
  const low = new Uint8ClampedArray(3 * across * rows.length);
  const strip = picture.linesAtATime(bottom - top);
  for (let x = left; x < right; x += strip) {
    const count = Math.min(strip, right - x);
    const data = picture.read(x, top, count, bottom - top);
    for (let column = 0; column < count; column++) {
      const start = 4 * (column - count * top);
      mix(data, start, 4 * count, rows, low, 3 * (x - left + column), 3 * across);
    }
  }
  const pixels = new Uint8ClampedArray(3 * width * rows.length);
  for (let y = 0; y < rows.length; y++) {
    mix(low, 3 * (across * y - left), 3, columns, pixels, 3 * width * y, 3);
  }
  return pixels;
}

/** The first pixel that any weights use, and the one after the last. */
function extent(all) {
  const last = all[all.length - 1];
  return [all[0].start, last.start + last.weights.length];
}

/** Mixes old pixels of a row or column to new ones. A step leads from one pixel to the next. */
function mix(old, oldStart, oldStep, all, found, start, step) {
  for (let place = 0; place < all.length; place++) {
    const { start: first, weights } = all[place];
    let red = 2 ** (PRECISION - 1), green = red, blue = red; // a half, so that it is rounded
    for (let number = 0; number < weights.length; number++) {
      const from = oldStart + oldStep * (first + number);
      const weight = weights[number];
      red += weight * old[from];
      green += weight * old[from + 1];
      blue += weight * old[from + 2];
    }
    const to = start + step * place;
    found[to] = red >> PRECISION; // the array keeps it between 0 and 255
    found[to + 1] = green >> PRECISION;
    found[to + 2] = blue >> PRECISION;
  }
}

/**
 * Computes Pillow's weights: how much of which old pixels is in each new pixel.
 *
 * @param {number} pixels how many old pixels there are
 * @param {number} from where the part that is scaled begins
 * @param {number} to where it ends
 * @param {number} size how many new pixels there are
 * @returns {{start: number, weights: Int32Array}[]} weights that sum to about 2 ** PRECISION
 */
function bicubicWeights(pixels, from, to, size) {
  const step = (to - from) / size;
  const stretch = Math.max(step, 1); // smaller pictures are blurred, which is antialiasing
  return Array.from({ length: size }, (_, place) => {
    const centre = from + (place + 0.5) * step;
    const start = Math.max(0, Math.trunc(centre - 2 * stretch + 0.5));
    const end = Math.min(pixels, Math.trunc(centre + 2 * stretch + 0.5));
    const exact = Array.from({ length: end - start }, (_, number) =>
      bicubic((start + number - centre + 0.5) / stretch),
    );
    const sum = exact.reduce((total, weight) => total + weight, 0);
    const whole = exact.map((weight) => {
      const scaled = (weight / sum) * 2 ** PRECISION;
      return Math.trunc(scaled + (scaled < 0 ? -0.5 : 0.5));
    });
    return { start, weights: Int32Array.from(whole) };
  });
}

/** The bicubic filter with a = -0.5 (Keys 1981). */
function bicubic(distance) {
  const a = -0.5;
  const x = Math.abs(distance);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

function withBorders(pixels, width, height, { size, padding }) {
  if (width === size && height === size) return pixels;
  const filled = new Uint8ClampedArray(3 * size * size).map((_, place) => padding[place % 3]);
  const [left, top] = [Math.floor((size - width) / 2), Math.floor((size - height) / 2)];
  for (let y = 0; y < height; y++) {
    const row = pixels.subarray(3 * width * y, 3 * width * (y + 1));
    filled.set(row, 3 * (size * (top + y) + left));
  }
  return filled;
}
