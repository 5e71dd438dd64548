/** Elements, made of names and texts. Nothing parses HTML: what a gallery says stays text. */

const SVG = "http://www.w3.org/2000/svg";

/** The element of the page with an id. */
export const at = (id) => document.getElementById(id);

/** An HTML element with attributes (functions are listeners, false and undefined leave out) and children. */
export function make(name, attributes = {}, ...children) {
  return dressed(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function draw(name, attributes = {}, ...children) {
  return dressed(document.createElementNS(SVG, name), attributes, children);
}

/** Put texts and elements in the place of what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...children.filter((child) => child !== null && child !== undefined && child !== false));
}

function dressed(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  fill(element, ...children);
  return element;
}
