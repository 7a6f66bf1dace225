// The documented network in plain JavaScript: cifar_tl/network.py, layer by layer.
// A map is one channel of a layer. The values of a layer are its maps, one after the other.

/**
 * Computes the answer of the network.
 *
 * @param {Uint8ClampedArray} pixels 32 * 32 of them, each red, green and blue
 * @param {object} model from `readModel`
 * @returns {{probabilities: number[], layers: object[]}} of the classes that it learned, and what
 *   its three convolutions see
 */
function runNetwork(pixels, model) {
  const { tensors } = model;
  const first = relu(convolve(normalise(pixels, model), tensors["features.conv1"]));
  const second = relu(convolve(first, tensors["features.conv2"]));
  const third = relu(convolve(pool(second), tensors["features.conv3"]));
  const hidden = relu(linear(third, tensors["classifier.linear1"]));
  const logits = linear(hidden, tensors["classifier.linear2"]).values;
  const probabilities = softmax(model.outputs.map((output) => logits[output] / model.temperature));
  return { probabilities, layers: [first, second, third] };
}

/** Turns pixels into the input of the first layer: one map for each colour. */
function normalise(pixels, { mean, std, frame }) {
  const count = frame.size * frame.size;
  const values = new Float32Array(3 * count);
  for (let colour = 0; colour < 3; colour++) {
    for (let place = 0; place < count; place++) {
      const value = pixels[3 * place + colour];
      values[colour * count + place] = (value - 255 * mean[colour]) / (255 * std[colour]);
    }
  }
  return { values, maps: 3, size: frame.size };
}

/** A convolution without borders: each map shrinks by the size of the kernel less one. */
function convolve({ values, maps, size }, { weight, bias, shape }) {
  const [filters, , kernel] = shape;
  const small = size - kernel + 1;
  const found = new Float32Array(filters * small * small);
  for (let filter = 0; filter < filters; filter++) {
    const target = found.subarray(filter * small * small, (filter + 1) * small * small);
    target.fill(bias[filter]);
    for (let map = 0; map < maps; map++) {
      for (let row = 0; row < kernel; row++) {
        for (let column = 0; column < kernel; column++) {
          const factor = weight[((filter * maps + map) * kernel + row) * kernel + column];
          const start = map * size * size + row * size + column;
          for (let y = 0; y < small; y++) {
            for (let x = 0; x < small; x++) {
              target[y * small + x] += factor * values[start + y * size + x];
            }
          }
        }
      }
    }
  }
  return { values: found, maps: filters, size: small };
}

/** Keeps the largest of each 2 x 2 values. */
function pool({ values, maps, size }) {
  const small = size / 2;
  const found = new Float32Array(maps * small * small);
  for (let place = 0; place < found.length; place++) {
    const row = Math.floor(place / small); // counted over all maps
    const corner = 2 * row * size + 2 * (place % small);
    found[place] = Math.max(
      values[corner], values[corner + 1], values[corner + size], values[corner + size + 1],
    );
  }
  return { values: found, maps, size: small };
}

/** A linear layer: each output is a weighted sum of all values. */
function linear({ values }, { weight, bias }) {
  const found = Float32Array.from(bias, (offset, output) => {
    let sum = offset;
    const start = output * values.length;
    for (let place = 0; place < values.length; place++) sum += weight[start + place] * values[place];
    return sum;
  });
  return { values: found };
}

function relu(layer) {
  return { ...layer, values: layer.values.map((value) => Math.max(0, value)) };
}

function softmax(logits) {
  const largest = logits.reduce((one, other) => Math.max(one, other));
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((one, other) => one + other);
  return powers.map((power) => power / sum);
}

/** Reads the model out of the page: its description, and float32 weights in base64. */
function readModel(text) {
  const model = JSON.parse(text);
  for (const [name, { weight, bias, shape }] of Object.entries(model.tensors)) {
    model.tensors[name] = { weight: floats(weight), bias: floats(bias), shape };
  }
  return model;
}

function floats(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Float32Array(bytes.buffer); // little-endian, as all processors of browsers are
}
