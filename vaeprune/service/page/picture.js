// Rows as pictures. A row (1 or 3, height, width) is a picture, other channels stand side by side in grey, and what has
// no two axes is drawn as a curve.

export function sizeOf(shape) {
  if (shape.length === 3) {
    const [channels, height, width] = shape;
    const colour = channels === 3;
    return { channels, height, width, colour, across: colour ? width : channels * width, curve: false };
  }
  if (shape.length === 2) return { channels: 1, height: shape[0], width: shape[1], colour: false, across: shape[1], curve: false };
  const count = shape.reduce((a, b) => a * b, 1);
  return { channels: 1, height: 120, width: count, colour: false, across: Math.max(240, count), curve: true };
}

export function draw(canvas, shape, values, [low, high]) {
  const size = sizeOf(shape);
  if (canvas.width !== size.across || canvas.height !== size.height) {
    canvas.width = size.across;
    canvas.height = size.height;
  }
  if (size.curve) return drawCurve(canvas, values, low, high);
  const { channels, height, width, colour, across } = size;
  const picture = new ImageData(across, height);
  const grey = (value) => Math.round((255 * (value - low)) / (high - low)); // ImageData clamps to 0..255
  for (let channel = 0; channel < channels; channel++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const value = grey(values[(channel * height + y) * width + x]);
        if (colour) {
          picture.data[4 * (y * across + x) + channel] = value;
        } else {
          picture.data.fill(value, 4 * (y * across + channel * width + x), 4 * (y * across + channel * width + x) + 3);
        }
      }
    }
  }
  for (let i = 3; i < picture.data.length; i += 4) picture.data[i] = 255;
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(picture, 0, 0);
}

function drawCurve(canvas, values, low, high) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--mark");
  context.beginPath();
  values.forEach((value, i) => {
    const x = (i + 0.5) * (width / values.length);
    context.lineTo(x, height - 4 - ((value - low) / (high - low)) * (height - 8));
  });
  context.stroke();
}

// A picture file as a row of `shape` with values in `range`: the middle square of what it shows, scaled.
export async function rowOf(file, shape, [low, high], invert) {
  const size = sizeOf(shape);
  if (size.curve || !(size.channels === 1 || size.colour)) throw new Error("this model does not take pictures");
  const bitmap = await createImageBitmap(file);
  const canvas = new OffscreenCanvas(size.width, size.height);
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, size.width, size.height);
  const scale = Math.max(size.width / bitmap.width, size.height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (size.width - w) / 2, (size.height - h) / 2, w, h);
  const pixels = context.getImageData(0, 0, size.width, size.height).data;
  const count = size.width * size.height;
  const values = new Float32Array(size.channels * count);
  for (let i = 0; i < count; i++) {
    const [r, g, b] = pixels.subarray(4 * i, 4 * i + 3);
    const found = size.colour ? [r, g, b] : [0.299 * r + 0.587 * g + 0.114 * b];
    found.forEach((value, channel) => {
      const share = invert ? 1 - value / 255 : value / 255;
      values[channel * count + i] = low + share * (high - low);
    });
  }
  return values;
}
