// The OpenAPI document, readable: no script or style comes from elsewhere.

import { openapi } from "./api.js";

const $ = (id) => document.getElementById(id);

function element(name, text, parent) {
  const made = document.createElement(name);
  made.textContent = text;
  parent.append(made);
  return made;
}

// A schema in a line: number[1..256][8]
function brief(schema) {
  if (schema.anyOf) return schema.anyOf.map(brief).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") {
    const [least, most] = [schema.minItems ?? 0, schema.maxItems ?? "…"];
    const inner = brief(schema.items);
    const at = schema.items.type === "array" ? inner.indexOf("[") : inner.length;
    return `${inner.slice(0, at)}[${least === most ? most : `${least}..${most}`}]${inner.slice(at)}`;
  }
  if (schema.type === "object") {
    return `{ ${Object.entries(schema.properties).map(([key, value]) => `"${key}": ${brief(value)}`).join(", ")} }`;
  }
  return schema.format === "binary" ? "a .npy array" : schema.type;
}

function content(title, entry, parent) {
  if (!entry) return;
  element("p", title, parent);
  for (const [kind, { schema }] of Object.entries(entry)) element("pre", `${kind}\n${brief(schema)}`, parent);
}

try {
  const found = await openapi();
  $("title").textContent = found.info.title;
  $("about").textContent = found.info.description;
  for (const [path, methods] of Object.entries(found.paths)) {
    for (const [method, route] of Object.entries(methods)) {
      const section = document.createElement("section");
      section.className = "route";
      element("h2", `${method.toUpperCase()} ${path}`, section);
      element("p", route.summary, section);
      for (const { name, schema, description } of route.parameters ?? []) {
        element("p", `?${name}= ${schema.enum?.join(" or ") ?? schema.type}: ${description}`, section);
      }
      content("takes", route.requestBody?.content, section);
      content("gives", route.responses["200"].content, section);
      const refusals = Object.entries(route.responses).filter(([status]) => status !== "200");
      element("p", `refuses with ${refusals.map(([status, { description }]) => `${status} ${description}`).join(" ")}`, section);
      $("routes").append(section);
    }
  }
} catch (error) {
  $("about").textContent = error.message;
}
