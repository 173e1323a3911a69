// A VAE in the browser: encoder.onnx and decoder.onnx run by onnxruntime-web, nothing leaves the machine.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more threads need a page that is cross-origin isolated

/** Open a folder that `vaeprune export` wrote. Rows are Float32Arrays, one after the other. */
export async function open(folder) {
  const [encoder, decoder] = await Promise.all(
    ["encoder", "decoder"].map((part) => ort.InferenceSession.create(`${folder}/${part}.onnx`)),
  );
  const rowShape = encoder.inputMetadata[0].shape.slice(1); // the first size is the batch
  const latentShape = decoder.inputMetadata[0].shape.slice(1);

  async function run(session, name, values, shape) {
    const rows = values.length / shape.reduce((a, b) => a * b, 1);
    if (!Number.isInteger(rows)) throw new RangeError(`${name}: ${values.length} numbers are no rows of ${shape}`);
    return session.run({ [name]: new ort.Tensor("float32", values, [rows, ...shape]) });
  }

  return {
    rowShape,
    latentShape,
    /** x → { mu, logvar }; logvar is ln σ². */
    async encode(x) {
      const { mu, logvar } = await run(encoder, "x", x, rowShape);
      return { mu: mu.data, logvar: logvar.data };
    },
    /** z → x_hat. */
    async decode(z) {
      return (await run(decoder, "z", z, latentShape)).x_hat.data;
    },
  };
}

/** Draws from N(0, 1), by Box and Muller. */
export function noise(count) {
  return Float32Array.from(
    { length: count },
    () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random()),
  );
}
