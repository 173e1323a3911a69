// Sliders, one a latent. A latent that is a map has one slider, which moves all its positions alike.

const REACH = 3;

export function slider(latent, onMove, idle) {
  const row = document.createElement("div");
  row.className = idle ? "latent idle" : "latent";
  const id = `latent-${latent.number}`;
  const label = document.createElement("label");
  label.htmlFor = id;
  const word = document.createElement("span");
  word.className = "unseen";
  word.textContent = idle ? "idle latent " : "latent ";
  label.append(word, `${latent.number}`);
  if (latent.kl !== null) {
    const small = document.createElement("small");
    small.textContent = latent.kl < 0.001 ? " KL < 0.001" : ` KL ${latent.kl.toFixed(latent.kl < 10 ? 3 : 1)}`;
    label.append(small);
  }
  const input = document.createElement("input");
  Object.assign(input, { id, type: "range", min: -REACH, max: REACH, step: 0.05 });
  const value = document.createElement("output");
  value.htmlFor.add(id);
  row.append(label, input, value);
  if (idle && latent.evidence) {
    const why = document.createElement("details");
    const held = document.createElement("summary");
    held.textContent = `held at ${latent.constant?.toPrecision(3) ?? "?"}`;
    why.append(held, latent.evidence);
    row.append(why);
  }
  input.addEventListener("input", () => onMove(latent.number, Number(input.value)));
  const show = (mean) => {
    const reach = Math.max(REACH, Math.ceil(Math.abs(mean)));
    input.min = -reach;
    input.max = reach;
    if (Number(input.value) !== mean) input.value = mean;
    value.textContent = mean.toFixed(2);
    input.setAttribute("aria-valuetext", mean.toFixed(2));
  };
  return { row, input, show };
}

// A standard normal number (Box and Muller 1958)
export const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
