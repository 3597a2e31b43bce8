// Colours, fonts and numbers as the page has them: what every drawing script shares.
import { TOKENS } from "./settings.js"

export function style() {
  if (document.getElementById("initscope-css")) return
  const link = document.createElement("link")
  Object.assign(link, { id: "initscope-css", rel: "stylesheet", href: new URL("./plot.css", import.meta.url) })
  document.head.append(link)
  reachable()
  new MutationObserver(() => {
    clearTimeout(waiting)
    waiting = setTimeout(reachable, 200)
  }).observe(document.body, { childList: true, subtree: true })
}

let waiting = 0

// Code that is wider than its place can be scrolled by the keyboard.
function reachable() {
  for (const code of document.querySelectorAll(".stApp [data-testid=stCode] pre:not([tabindex])")) code.tabIndex = 0
}

// -- theme

function luminance(color) {
  const probe = document.createElement("canvas").getContext("2d")
  probe.fillStyle = color
  probe.fillRect(0, 0, 1, 1)
  const [r, g, b] = probe.getImageData(0, 0, 1, 1).data
  return 0.299 * r + 0.587 * g + 0.114 * b
}

export function themeOf(element) {
  const css = getComputedStyle(element)
  const read = (name, fallback) => css.getPropertyValue(name).trim() || fallback
  const dark = luminance(read("--st-background-color", "#fff")) < 128
  return {
    dark,
    tokens: TOKENS[dark ? "dark" : "light"],
    font: read("--st-font", "sans-serif"),
    heading: read("--st-heading-font", "serif"),
    background: read("--st-background-color", "#fff"),
  }
}

// Text that was escaped for Plotly's little HTML, as it was typed.
export const plain = (text) => (text ?? "").replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&").replaceAll("\u200b", "")

// A name for a label of Plotly's, which reads a little HTML: shown as typed.
export const typed = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")

export const PAPER = { ...TOKENS.light, paper: "#FFFFFF" }

// A copy in which every "var(--token)" has become a colour. Long arrays are shared, not copied.
export function resolved(value, tokens) {
  if (typeof value === "string") return value.startsWith("var(--") ? (tokens[value.slice(6, -1)] ?? value) : value
  if (Array.isArray(value)) return value.length > 99 ? value : value.map((item) => resolved(item, tokens))
  if (value && typeof value === "object" && !ArrayBuffer.isView(value)) {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolved(item, tokens)]))
  }
  return value
}

// Set {"xaxis.tickangle": 90} in a nested object.
export function change(object, changes) {
  for (const [path, value] of Object.entries(changes ?? {})) {
    const keys = path.split(".")
    const last = keys.pop()
    keys.reduce((at, key) => (at[key] ??= {}), object)[last] = value
  }
}

export function axis(given, tokens) {
  const quiet = { gridcolor: tokens.grid, zerolinecolor: tokens.line, linecolor: tokens.line, tickcolor: tokens.line }
  const title = given.title && { ...given.title, font: { size: 12, color: tokens.muted, ...given.title.font } }
  return { ...quiet, ...given, title, tickfont: { size: 12, color: tokens.muted, ...given.tickfont } }
}

// -- numbers

const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" }

// Three significant digits, as dashboard/initscope_dashboard/content/formatting.py writes them.
export function number(value, digits = 3) {
  if (!Number.isFinite(value)) return "–"
  if (value === 0) return "0"
  const [mantissa, exponent] = Math.abs(value).toExponential(digits - 1).split("e")
  const sign = value < 0 ? "−" : ""
  const power = Number(exponent)
  if (power >= -3 && power < 9) {
    return sign + Number(`${mantissa}e${power}`).toLocaleString("en-US", { maximumFractionDigits: Math.max(0, digits - 1 - power) })
  }
  return `${sign}${Number(mantissa)} × 10${[...String(power)].map((char) => RAISED[char]).join("")}`
}
