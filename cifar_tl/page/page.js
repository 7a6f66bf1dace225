// What the page does: takes pictures from people, and shows the answers.

const BARS = 10; // so many classes have their bars at once; the others are folded away
const THUMBNAIL = 64; // pixels a side
const PREVIEW = 512;
const LAYERS = ["first", "second", "third"];

const model = readModel(byId("model").textContent);
const pictures = []; // all that were given: {name, blob, row}, later with answers or a problem
const waiting = []; // those of them that have no answer yet
let working = false;

window.cifarTl = {
  /**
   * Classifies a picture.
   *
   * @param {Blob} blob the content of an image file
   * @returns {Promise<{name: string, probability: number}[]>} the most probable class first
   */
  classify: async (blob) => (await look(blob)).answers,
};

/** Decodes, scales and classifies a picture. `use` gets its bitmap, which is closed afterwards. */
async function look(blob, use = () => {}) {
  const { bitmap, kind } = await decode(blob);
  try {
    const pixels = scale(bitmap, kind, model.frame, model.white);
    use(bitmap);
    const { probabilities, layers } = runNetwork(pixels, model);
    return { pixels, layers, probabilities, answers: ranked(probabilities) };
  } finally {
    bitmap.close();
  }
}

function ranked(probabilities) {
  const answers = model.names.map((name, place) => ({ name, probability: probabilities[place] }));
  return answers.sort((one, other) => other.probability - one.probability);
}

// Pictures from people

function take(files) {
  const given = Array.from(files, (file) => ({ name: file.name || "pasted picture", blob: file }));
  if (given.length === 0) return say("There is no picture in it.");
  for (const picture of given) {
    picture.row = addRow(picture);
    pictures.push(picture);
    waiting.push(picture);
  }
  byId("all").hidden = pictures.length < 2;
  if (!working) answerAll();
}

/** Answers what is waiting, one picture after the other. While one is decoded, people can go on. */
async function answerAll() {
  working = true;
  let shown = false;
  let spoken = performance.now();
  while (waiting.length > 0) {
    const picture = waiting.shift();
    await answer(picture);
    if (!pictures.includes(picture)) continue; // "Start again" was pressed meanwhile
    fillRow(picture);
    if (!shown) shown = await show(picture);
    byId("stop").hidden = waiting.length === 0;
    if (performance.now() - spoken > 1000) {
      spoken = performance.now();
      say(`${done()} of ${pictures.length} pictures`);
    }
  }
  byId("stop").hidden = true;
  working = false;
  if (pictures.length > 0) say(summary());
}

const done = () => pictures.filter(({ answers, problem }) => answers || problem).length;

function summary() {
  const [only] = pictures;
  if (pictures.length === 1) return only.problem ? "" : `${only.answers[0].name}: ${percent(only)}`;
  const problems = pictures.filter(({ problem }) => problem).length;
  const left = pictures.length - done();
  return [
    `${done() - problems} of ${pictures.length} pictures have an answer.`,
    problems ? `${problems} cannot be read.` : "",
    left ? `${left} were left out when you pressed Stop.` : "",
  ].join(" ");
}

async function answer(picture) {
  try {
    picture.thumbnail = document.createElement("canvas");
    const draw = (bitmap) => drawInto(picture.thumbnail, bitmap, THUMBNAIL);
    Object.assign(picture, await look(picture.blob, draw), { pixels: null, layers: null });
  } catch (error) {
    picture.problem = wordsOf(error);
  }
}

function wordsOf(error) {
  return error instanceof PictureError ? error.message : `cannot be read (${error.message}).`;
}

// One answer

/** Shows one picture with all that is known of it. */
async function show(picture) {
  let seen = null;
  try {
    seen = await look(picture.blob, (bitmap) => drawInto(byId("picture"), bitmap, PREVIEW));
  } catch (error) {
    picture.problem = wordsOf(error);
  }
  if (!pictures.includes(picture)) return false;
  byId("answer").hidden = false;
  byId("found").hidden = seen === null;
  byId("name").textContent = picture.name;
  byId("problem").textContent = seen ? "" : `This file ${picture.problem}`;
  for (const { row } of pictures) row.removeAttribute("aria-current");
  picture.row.setAttribute("aria-current", "true");
  if (seen) {
    drawSeen(seen.pixels);
    showBars(seen.answers);
    drawLayers(seen.layers);
  }
  return true;
}

function showBars(answers) {
  const all = answers.length <= BARS + 2; // a fold for two classes hides more than it saves
  const first = all ? answers : answers.slice(0, BARS);
  byId("bars").replaceChildren(...first.map(barOf));
  byId("rest").hidden = all;
  byId("rest").firstElementChild.textContent = `${answers.length - first.length} more classes`;
  byId("rest-bars").replaceChildren(...answers.slice(first.length).map(barOf));
}

function barOf({ name, probability }) {
  const bar = make("span", { className: "bar" });
  bar.style.width = `${100 * probability}%`;
  const cell = make("td", { ariaHidden: "true" }, bar);
  const number = make("td", { className: "number", textContent: asPercent(probability) });
  return make("tr", {}, make("th", { scope: "row", textContent: name }), cell, number);
}

const asPercent = (probability) => `${(100 * probability).toFixed(1)} %`;
const percent = ({ answers }) => asPercent(answers[0].probability);

// Pictures on canvases

/** Draws a picture into a canvas whose longer side is so long. The browser may scale it here. */
function drawInto(canvas, bitmap, longest) {
  const factor = Math.min(1, longest / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(factor * bitmap.width));
  canvas.height = Math.max(1, Math.round(factor * bitmap.height));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
}

function drawSeen(pixels) {
  const { size } = model.frame;
  drawPixels(byId("seen"), size, size, (place) => pixels.subarray(3 * place, 3 * place + 3));
}

/** Draws the maps of each layer side by side. Black is 0, white the largest value of the layer. */
function drawLayers(layers) {
  const figures = layers.map(({ values, maps, size }, number) => {
    const across = Math.min(maps, 8);
    const zoom = Math.round(56 / size); // the maps of all layers look about as large
    const step = zoom * size + 4;
    const columns = across * step - 4;
    const rows = Math.ceil(maps / across) * step - 4;
    const largest = values.reduce((one, other) => Math.max(one, other), 1e-9);
    const canvas = document.createElement("canvas");
    drawPixels(canvas, columns, rows, (place) => {
      const [x, y] = [place % columns, Math.floor(place / columns)];
      const map = Math.floor(y / step) * across + Math.floor(x / step);
      const [column, row] = [Math.floor((x % step) / zoom), Math.floor((y % step) / zoom)];
      const isGap = column >= size || row >= size || map >= maps;
      const value = isGap ? 0.5 : values[(map * size + row) * size + column] / largest;
      return [255 * value, 255 * value, 255 * value];
    });
    const words = `The ${LAYERS[number]} convolution: ${maps} maps of ${size} x ${size} values`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", words);
    return make("figure", {}, canvas, make("figcaption", { textContent: words }));
  });
  byId("maps").replaceChildren(...figures);
}

function drawPixels(canvas, width, height, colourOf) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let place = 0; place < width * height; place++) {
    image.data.set([...colourOf(place), 255], 4 * place);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// The table of all pictures

function addRow(picture) {
  const button = make("button", { type: "button", textContent: picture.name });
  button.addEventListener("click", async () => {
    if (await show(picture)) byId("name").focus();
  });
  const cells = [make("td"), make("td", {}, button), make("td"), make("td", { className: "number" })];
  const row = make("tr", {}, ...cells);
  byId("rows").append(row);
  return row;
}

function fillRow({ row, thumbnail, answers, problem }) {
  const [image, , name, number] = row.cells;
  if (answers) {
    thumbnail.setAttribute("aria-hidden", "true");
    image.replaceChildren(thumbnail);
  }
  name.textContent = answers ? answers[0].name : `This file ${problem}`;
  number.textContent = answers ? asPercent(answers[0].probability) : "";
}

/** Writes a table as `cifar-tl predict --csv` does. The signature is for spreadsheets. */
function csv() {
  const lines = [["file", "class", "probability", ...model.names, "problem"]];
  for (const { name, answers, probabilities, problem } of pictures) {
    const figures = model.names.map((_, place) => probabilities?.[place].toFixed(6) ?? "");
    const [first] = answers ?? [{ name: "", probability: "" }];
    const probability = answers ? first.probability.toFixed(6) : "";
    lines.push([name, first.name, probability, ...figures, problem ?? ""]);
  }
  return "\ufeff" + lines.map((line) => line.map(csvCell).join(",") + "\r\n").join("");
}

/** A spreadsheet would compute what begins with one of these signs. */
function csvCell(text) {
  const safe = /^[=+\-@\t\r\n]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function save() {
  const link = make("a", { download: "answers.csv" });
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function clear() {
  pictures.length = waiting.length = 0;
  byId("rows").replaceChildren();
  byId("all").hidden = byId("answer").hidden = true;
  say("");
  byId("files").focus();
}

// The camera

async function openCamera() {
  if (!navigator.mediaDevices) {
    return say("This browser gives a page no camera. Take the picture first, then choose it here.");
  }
  try {
    const wanted = { video: { facingMode: "environment" } }; // the back of a phone
    byId("video").srcObject = await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    const why = denied ? "The browser does not allow the camera." : "There is no camera that works.";
    return say(`${why} Choose a picture instead.`);
  }
  say("");
  byId("take").disabled = true; // until there is an image
  byId("camera").showModal();
}

function takePhoto() {
  const video = byId("video");
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  byId("camera").close();
  canvas.toBlob((blob) => take([new File([blob], "photo.png")]));
}

function closeCamera() {
  for (const track of byId("video").srcObject.getTracks()) track.stop();
  byId("video").srcObject = null;
}

// The parts of the page

function byId(id) {
  return document.getElementById(id);
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(text) {
  byId("status").textContent = text;
}

byId("files").addEventListener("change", ({ target }) => {
  take(target.files);
  target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", ({ clipboardData }) => take(clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("choose").classList.add("over");
});
document.addEventListener("dragleave", () => byId("choose").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("choose").classList.remove("over");
  take(event.dataTransfer.files);
});
byId("stop").addEventListener("click", () => {
  waiting.length = 0;
});
byId("save").addEventListener("click", save);
byId("clear").addEventListener("click", clear);
byId("open-camera").addEventListener("click", openCamera);
byId("video").addEventListener("playing", () => {
  byId("take").disabled = false;
});
byId("take").addEventListener("click", takePhoto);
byId("close-camera").addEventListener("click", () => byId("camera").close());
byId("camera").addEventListener("close", closeCamera);
