// Runs the script of a page of trajectories in as little of a browser as it needs, clicks, and prints what is there.
// node page_in_node.js PAGE
"use strict";
const page = require("fs").readFileSync(process.argv[2], "utf8");
let made = 0;

class Element {
  constructor(tag) {
    Object.assign(this, { tag, attributes: {}, nodes: [], parent: null, style: {}, dataset: {}, value: "", listeners: {} });
    made += tag === "circle";
  }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  toggleAttribute() {}
  scrollIntoView() {}
  addEventListener(name, call) { this.listeners[name] = call; }
  remove() {
    if (this.parent) this.parent.nodes.splice(this.parent.nodes.indexOf(this), 1);
    this.parent = null;
  }
  adopt(node) {
    if (!(node instanceof Element)) return node;
    node.remove();
    node.parent = this;
    return node;
  }
  append(...nodes) { for (const node of nodes) this.nodes.push(this.adopt(node)); }
  prepend(...nodes) { for (const node of nodes.reverse()) this.nodes.unshift(this.adopt(node)); }
  replaceChildren(...nodes) {
    this.nodes = [];
    this.append(...nodes);
  }
  querySelectorAll(tag) {
    return this.nodes.filter((node) => node instanceof Element).flatMap((node) => [...(node.tag === tag ? [node] : []), ...node.querySelectorAll(tag)]);
  }
  get text() { return this.nodes.map((node) => node.text || (typeof node === "string" ? node : "")).join(" "); }
}

const known = new Map([["data", { textContent: page.match(/type="application\/json">(.*)<\/script>\n<header>/)[1] }]]);
const byName = (id) => known.get(id) || known.set(id, new Element(id)).get(id);
globalThis.document = { getElementById: byName, createElement: (tag) => new Element(tag), createElementNS: (_, tag) => new Element(tag), addEventListener() {} };
globalThis.location = { hash: "" };
globalThis.history = { replaceState() {} };
byName("colour").value = "step";

const seen = () => {
  const circles = byName("map").querySelectorAll("circle");
  const large = circles.filter((circle) => circle.attributes.r === "7");
  return {
    made, circles: circles.length, large: large.length, questions: [...new Set(large.map((circle) => circle.attributes["data-question"]))],
    lines: byName("map").querySelectorAll("polyline").map((line) => line.attributes.points.split(" ").length),
    fills: new Set(circles.map((circle) => circle.attributes.fill)).size,
    ends: circles.slice(-large.length).every((circle) => large.includes(circle)),
    across: [Math.min, Math.max].map((most) => circles.reduce((so, circle) => most(so, Number(circle.attributes.cx)), 320)),
    cards: byName("cards").text.slice(-300),
  };
};
new Function(page.match(/<script>([^]*)<\/script>/)[1])();
const found = [seen()];
byName("map").querySelectorAll("circle").find((circle) => circle.attributes["data-question"] === "1").listeners.click();
found.push(seen());
byName("colour").value = "right";
byName("colour").listeners.input();
found.push(seen());
console.log(JSON.stringify(found));
