// The service as functions. Numbers travel as .npy, float32 with the lowest byte first.

const NPY = "application/x-npy";
let token = sessionStorage.getItem("token");

export class Refused extends Error {
  constructor(status, { message, hint }) {
    super(hint ? `${message}; ${hint}` : message);
    this.status = status;
  }
}

export function useToken(given) {
  token = given;
  sessionStorage.setItem("token", given);
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(token && { authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new Refused(response.status, told?.error ?? { message: `${path}: ${response.status}`, hint: "" });
}

export const describe = async () => (await request("/model")).json();
export const openapi = async () => (await request("/openapi.json")).json();

// values: Float32Array of one row; gives back { shape, values }
export async function ask(path, shape, values, model) {
  const headers = { "content-type": NPY, accept: NPY };
  const body = writeNpy([1, ...shape], values);
  const response = await request(`${path}?model=${model}`, { method: "POST", headers, body });
  return readNpy(await response.arrayBuffer());
}

export function writeNpy(shape, values) {
  const axes = shape.join(", ") + (shape.length === 1 ? "," : "");
  let header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${axes}), }`;
  header += " ".repeat((64 - ((10 + header.length + 1) % 64)) % 64) + "\n";
  const bytes = new Uint8Array(10 + header.length + 4 * values.length);
  bytes.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 255, header.length >> 8]);
  bytes.set(new TextEncoder().encode(header), 10);
  const view = new DataView(bytes.buffer, 10 + header.length);
  values.forEach((value, i) => view.setFloat32(4 * i, value, true));
  return bytes;
}

export function readNpy(buffer) {
  const length = new DataView(buffer).getUint16(8, true);
  const header = new TextDecoder().decode(new Uint8Array(buffer, 10, length));
  const shape = header.match(/'shape': \(([^)]*)\)/)[1].split(",").filter((s) => s.trim()).map(Number);
  const view = new DataView(buffer, 10 + length);
  const values = new Float32Array(view.byteLength / 4);
  for (let i = 0; i < values.length; i++) values[i] = view.getFloat32(4 * i, true);
  return { shape, values };
}
