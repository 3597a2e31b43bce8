// Draws Plotly figures for dashboard/initscope_dashboard/widgets/plot.py. One module for all charts of a page; Plotly.react keeps node and zoom.
import { PLOTLY_URL } from "./settings.js"
import { axis, change, number, PAPER, plain, resolved, style, themeOf, typed } from "./theme.js"
import { join } from "./live.js"

const TITLE = 32 // pixels of a figure's upper margin that are meant for its title
const NARROW = 560 // pixels; below, layout.meta.narrow applies
const KEEP = 1600 // points a live curve is thinned to once it has grown to three times as many
const charts = new Map() // parentElement -> chart
let library = null

export function plotly() {
  library ??= new Promise((resolve, reject) => {
    if (window.Plotly) return resolve(window.Plotly)
    const script = document.createElement("script")
    script.src = new URL(PLOTLY_URL, import.meta.url)
    script.onload = () => resolve(window.Plotly)
    script.onerror = () => {
      library = null
      script.remove()
      reject(new Error("The chart library did not load. Is the dashboard's server still running? Reload the page to try again."))
    }
    document.head.append(script)
  })
  return library
}

// -- the layout

function dressed(layout, theme, tokens, width) {
  const dress = resolved(layout, tokens)
  if (width < NARROW) {
    change(dress, dress.meta?.narrow)
    dress.margin = { ...dress.margin, r: Math.min(8, dress.margin?.r ?? 8) }
  }
  for (const name of Object.keys(dress)) {
    if (/^[xy]axis\d*$/.test(name)) dress[name] = axis(dress[name], tokens)
  }
  const { title: _, ...rest } = dress
  return {
    ...rest,
    margin: { ...dress.margin, t: Math.max(8, (dress.margin?.t ?? TITLE) - TITLE) }, // the title is HTML over the plot
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: theme.font, size: 13, color: tokens.ink, ...dress.font },
    hoverlabel: { bgcolor: tokens.panel, bordercolor: tokens.line, ...dress.hoverlabel, font: { family: theme.font, color: tokens.ink, size: 13 } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: tokens.faint, activecolor: tokens.ink, orientation: "h" },
  }
}

// -- numbers

const WORDS = {
  log10: (z) => `: ${number(10 ** z)}`,
  share: (z) => `: ${number(100 * z)} %`,
  log10ratio: (z) => (Math.abs(z) < 0.02 ? ": equal" : `: ${number(10 ** Math.abs(z), 2)} times ${z > 0 ? "larger" : "smaller"} in B`),
  mark: () => "",
}

const TYPES = { f4: Float32Array, f8: Float64Array, i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array }

const bytesOf = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0))

// The plain (or typed) array behind plotly.py's {dtype, bdata, shape}.
function decoded(value) {
  if (!value?.bdata) return value ?? []
  const flat = new TYPES[value.dtype](bytesOf(value.bdata).buffer)
  if (!value.shape) return flat
  const columns = Number(value.shape.split(",")[1])
  return Array.from({ length: flat.length / columns }, (_, row) => flat.subarray(row * columns, (row + 1) * columns))
}

// The rows behind plot.py's packed z.
async function unpacked({ deflated, shape: [rows, columns], offset, scale }) {
  const inflated = new Blob([bytesOf(deflated)]).stream().pipeThrough(new DecompressionStream("deflate"))
  const planes = new Uint8Array(await new Response(inflated).arrayBuffer())
  const n = rows * columns
  const flat = new Float32Array(n)
  for (let i = 0; i < n; i += 1) {
    const value = ((planes[n + i] << 24) >> 16) | planes[i]
    flat[i] = value === -32768 ? NaN : offset + scale * value
  }
  return Array.from({ length: rows }, (_, row) => flat.subarray(row * columns, (row + 1) * columns))
}

// An array whose items are made when they are asked for: hover texts of a hundred thousand cells, of which a few are read.
function lazily(length, make) {
  const index = (key) => (typeof key === "string" && /^\d+$/.test(key) ? Number(key) : -1)
  return new Proxy([], {
    get: (array, key) => (key === "length" ? length : index(key) >= 0 ? make(index(key)) : array[key]),
    has: (array, key) => (index(key) >= 0 ? index(key) < length : key in array),
  })
}

// -- one chart

async function prepared(figure, streaming) {
  return Promise.all(
    figure.data.map(async (trace) => {
      const ready = { ...trace }
      const words = WORDS[trace.meta?.text]
      if (words) {
        const { what, around, notes } = trace.meta
        const steps = decoded(trace.x)
        ready.z = trace.z.deflated ? await unpacked(trace.z) : decoded(trace.z)
        const line = (row, i) => `<b>${typed(trace.y[row])}</b> · step ${steps[i].toLocaleString("en-US")}${around}<br>${what}${words(ready.z[row][i])}${notes?.[row] ? `<br>${notes[row]}` : ""}`
        ready.text = ready.z.map((values, row) => lazily(values.length, (i) => (Number.isNaN(values[i]) ? "" : line(row, i))))
        ready.hoverongaps = false
      }
      if (streaming && trace.meta?.table) {
        ready.x = Array.from(decoded(trace.x))
        ready.y = Array.from(decoded(trace.y), (y) => (Number.isFinite(y) ? y : null))
      }
      return ready
    }),
  )
}

// -- names on an axis of many layers

const ROOM = 14 // pixels a name needs

// Tick positions and texts for the layers in sight: every name if there is room, else blocks, and as many as fit.
function ticks({ keys, names, groups }, [from, to], pixels, longest) {
  const low = Math.max(0, Math.ceil(from))
  const high = Math.min(keys.length - 1, Math.floor(to))
  const each = pixels / Math.max(1, to - from)
  const near = each >= ROOM - 1
  const found = near ? keys.map((_, i) => [names[i], i, i]) : groups
  const tickvals = []
  const ticktext = []
  let last = -Infinity
  for (const [name, first, end] of found) {
    const middle = Math.round((Math.max(first, low) + Math.min(end, high)) / 2)
    if (end < low || first > high || (!near && (middle - last) * each < ROOM)) continue
    last = middle
    tickvals.push(keys[middle])
    ticktext.push(typed(name.length > longest ? `${name.slice(0, longest / 2 - 1)}…${name.slice(-longest / 2)}` : name))
  }
  return { tickmode: "array", tickvals, ticktext }
}

// The ticks for what is in sight now: all of it, or what a zoom left.
function named(chart, layout) {
  const rows = layout.meta?.rows
  if (!rows) return null
  const drawn = chart.node._fullLayout?.[rows.axis]
  const { l = 0, r = 0, t = 0, b = 0 } = layout.margin
  const pixels = drawn?._length ?? (rows.axis === "yaxis" ? layout.height - t - b : layout.width - l - r)
  return ticks(rows, drawn?.range ?? layout[rows.axis]?.range ?? [-0.5, rows.keys.length - 0.5], pixels, layout.width < NARROW ? 14 : Infinity)
}

function rename(chart) {
  const rows = chart.layout?.meta?.rows
  if (!rows || !chart.shown) return
  const fresh = named(chart, chart.shown)
  const axis = chart.shown[rows.axis]
  if (fresh.tickvals.join() === axis.tickvals.join()) return
  Object.assign(axis, fresh)
  chart.Plotly.relayout(chart.node, Object.fromEntries(Object.entries(fresh).map(([key, value]) => [`${rows.axis}.${key}`, value])))
}

// Every bucket's lowest and highest point; the newest tenth stays whole.
function thinned(x, y) {
  const whole = x.length - KEEP / 10
  const size = Math.ceil(whole / (KEEP / 2))
  const kept = []
  for (let start = 0; start < whole; start += size) {
    let low = start
    let high = start
    for (let i = start; i < Math.min(whole, start + size); i += 1) {
      if (y[i] < y[low]) low = i
      if (y[i] > y[high]) high = i
    }
    kept.push(...(low === high ? [low] : [Math.min(low, high), Math.max(low, high)]))
  }
  for (let i = Math.ceil(whole); i < x.length; i += 1) kept.push(i)
  return [kept.map((i) => x[i]), kept.map((i) => y[i])]
}

// A loss above its axis takes the next upper end that the figure allows, as a rerun would.
function raise(layout, values) {
  const { tops } = layout.meta ?? {}
  if (!tops || !layout.yaxis?.range) return
  const highest = Math.max(...values.filter(Number.isFinite))
  const next = tops.find((top) => top > layout.yaxis.range[1])
  if (next && highest > layout.yaxis.range[1]) layout.yaxis.range = [layout.yaxis.range[0], next]
}

// Put into the traces what has come since; whether anything changed.
function extend(chart) {
  let changed = false
  for (const trace of chart.traces) {
    const live = chart.feed?.(trace.meta?.run)
    if (!live) continue
    if (trace.meta.table) {
      const rows = live[trace.meta.table]
      const last = trace.x.length ? trace.x[trace.x.length - 1] : -1
      let from = rows.x.length
      while (from > 0 && rows.x[from - 1] > last) from -= 1
      if (from === rows.x.length) continue
      trace.x = trace.x.concat(rows.x.slice(from))
      const fresh = rows[trace.meta.y].slice(from)
      trace.y = trace.y.concat(fresh)
      raise(chart.layout, fresh)
      if (trace.x.length > 3 * KEEP) [trace.x, trace.y] = thinned(trace.x, trace.y)
      changed = true
    } else if (trace.meta.layers && live.layers && live.layers.step !== trace.seen) {
      const [low, high] = chart.layout.xaxis.range
      const at = new Map(live.layers.names.map((name, i) => [name, live.layers[trace.meta.layers][i]]))
      const values = trace.y.map((name) => (at.has(name) ? at.get(name) : undefined))
      const known = values.filter((v) => v > 0).map(Math.log10)
      const range = [Math.min(low, ...known.map(Math.floor)), Math.max(high, ...known.map(Math.ceil))]
      if (range[0] < low || range[1] > high) Object.assign(chart.layout.xaxis, { range, tickvals: undefined, ticktext: undefined })
      trace.x = values.map((v) => (v === 0 ? 10 ** chart.data.figure.layout.xaxis.range[0] : v === null ? 10 ** chart.layout.xaxis.range[1] : v))
      trace.marker = { ...trace.marker, symbol: values.map((v) => (v === 0 ? "circle-open" : v === null ? "x" : trace.meta.symbol)) }
      trace.text = values.map((v) => (v === null ? "NaN or infinite" : number(v)))
      trace.seen = live.layers.step
      changed = true
    }
  }
  return changed
}

function configured(chart) {
  const png = {
    name: "png",
    title: "Download as PNG",
    icon: chart.Plotly.Icons.camera,
    click: ({ data, layout }) => {
      const { title, ...theme } = { title: chart.data.figure.layout.title?.text, ...themeOf(chart.parent) }
      const font = { family: theme.heading, size: 16 }
      const place = { x: 0.01, xanchor: "left", y: 0.99, yanchor: "top" }
      const margin = { ...layout.margin, t: layout.margin.t + TITLE }
      const sheet = { ...layout, paper_bgcolor: theme.background, height: chart.data.height, margin, title: { text: title, font, ...place } }
      const size = { width: layout.width, height: chart.data.height, scale: 2 }
      chart.Plotly.downloadImage({ data, layout: sheet }, { format: "png", filename: chart.data.file, ...size })
    },
  }
  return {
    displaylogo: false,
    displayModeBar: chart.data.still ? false : "hover",
    modeBarButtons: [["resetScale2d", png]],
    doubleClick: "reset+autosize",
    responsive: false,
    showTips: false,
  }
}

function paint(chart, printing = false) {
  const { Plotly, node, data } = chart
  if (!Plotly || !chart.traces) return
  const began = performance.now()
  const theme = themeOf(chart.parent)
  const tokens = printing ? PAPER : theme.tokens
  const width = Math.max(data.min_width ?? 0, Math.floor(chart.parent.clientWidth))
  if (!width) return
  chart.width = chart.parent.clientWidth
  chart.revision = (chart.revision ?? 0) + 1
  const layout = dressed(chart.layout, theme, tokens, width)
  const height = Math.max(120, data.height - chart.title.offsetHeight)
  Object.assign(layout, { width, height, autosize: false, uirevision: data.key, datarevision: chart.revision })
  if (window.matchMedia("(pointer: coarse)").matches) layout.dragmode = false // a finger scrolls the page
  if (layout.meta?.rows) Object.assign((layout[layout.meta.rows.axis] ??= {}), named(chart, layout))
  chart.shown = layout
  chart.config ??= configured(chart) // another object would make Plotly.react start anew and forget the zoom
  const traces = chart.traces.map((trace) => resolved(trace, tokens))
  if (width < NARROW) for (const trace of traces) change(trace, trace.meta?.narrow)
  chart.drawn = Plotly.react(node, traces, layout, chart.config)
  for (const svg of node.querySelectorAll("svg.main-svg")) svg.setAttribute("aria-hidden", "true") // the label says it in words
  if (!chart.listening) {
    chart.listening = true
    node.on("plotly_hover", (event) => (chart.pointer = event.event))
    node.on("plotly_unhover", () => (chart.pointer = null))
    node.on("plotly_relayout", () => rename(chart))
    node.on("plotly_click", (event) => {
      const point = event.points?.[0]
      if (!point || !chart.data.clicks) return
      chart.send("click", { x: point.x, y: point.y, run: point.data.meta?.run ?? null, trace: point.curveNumber })
    })
  }
  if (chart.pointer?.isConnected !== false && chart.pointer) Plotly.Fx.hover(node, chart.pointer) // what the reader points at stays labelled
  node.dataset.drawn = String(chart.revision)
  chart.cost = performance.now() - began
}

// Draw with the next frame, and never spend more than a third of the time drawing.
function soon(chart) {
  if (chart.waiting) return
  chart.waiting = true
  const next = () => requestAnimationFrame(() => {
    if (chart.node._dragging) return setTimeout(next, 100) // a redraw would end the reader's zoom
    chart.waiting = false
    chart.drawnAt = performance.now()
    if (charts.get(chart.parent) === chart) paint(chart)
  })
  const pause = (chart.drawnAt ?? 0) + 3 * (chart.cost ?? 0) - performance.now()
  if (pause > 0) setTimeout(next, pause)
  else next()
}

function mount(parent) {
  const box = document.createElement("div")
  box.className = "initscope-plot"
  box.setAttribute("role", "figure") // not "img": a figure may hold buttons, the tool bar's
  const title = document.createElement("div")
  title.className = "title"
  const node = document.createElement("div")
  box.append(title, node)
  parent.append(box)
  const chart = { parent, box, title, node }
  chart.observer = new ResizeObserver(() => {
    if (parent.clientWidth && parent.clientWidth !== chart.width) soon(chart)
  })
  chart.observer.observe(parent)
  charts.set(parent, chart)
  return chart
}

export async function draw({ data, parentElement, setTriggerValue }) {
  style()
  const chart = charts.get(parentElement) ?? mount(parentElement)
  const fresh = chart.data !== data
  Object.assign(chart, { data, send: setTriggerValue })
  chart.box.style.height = `${data.height}px`
  chart.box.setAttribute("aria-label", data.alt)
  chart.box.classList.toggle("clickable", Boolean(data.clicks))
  chart.title.textContent = plain(data.figure.layout.title?.text)
  const leave = () => {
    chart.leave?.()
    chart.observer.disconnect()
    charts.delete(parentElement)
    chart.box.remove()
    // A drawing that is under way ends with an event of the node's, which a purged node cannot emit.
    const purge = () => chart.Plotly?.purge(chart.node)
    Promise.resolve(chart.drawn).then(purge, purge)
  }
  const hint = data.figure.layout.meta?.blank
  chart.node.classList.toggle("hint", Boolean(hint))
  if (hint) {
    if (chart.Plotly) chart.Plotly.purge(chart.node)
    chart.traces = chart.data = null
    chart.listening = false
    chart.node.textContent = plain(hint)
    return leave
  }
  try {
    chart.Plotly = await plotly()
  } catch (error) {
    chart.node.classList.add("hint")
    chart.node.textContent = error.message
    return leave
  }
  if (chart.data !== data || charts.get(parentElement) !== chart) return leave // a newer call draws
  if (!chart.node.classList.contains("js-plotly-plot")) chart.node.replaceChildren()
  if (fresh) {
    const traces = await prepared(data.figure, data.stream.length > 0)
    if (chart.data !== data || charts.get(parentElement) !== chart) return leave // a newer call came while this one unpacked
    chart.traces = traces
    chart.layout = structuredClone(data.figure.layout)
    const key = data.stream.join()
    if (key !== chart.key) {
      chart.leave?.()
      chart.leave = chart.feed = null
      chart.key = key
      if (key) [chart.feed, chart.leave] = join(data.stream, (run) => newest(chart, run), () => extend(chart) && soon(chart))
    }
    extend(chart)
  }
  paint(chart)
  return leave
}

// The last step that this chart already shows of a run.
function newest(chart, run) {
  const ends = chart.traces.filter((t) => t.meta?.run === run && t.meta.table === "steps").map((t) => t.x.at(-1) ?? -1)
  return ends.length ? Math.min(...ends) : Infinity
}

// -- printing: ink on white, scaled to whatever width the page gives

window.addEventListener("beforeprint", () => {
  for (const chart of charts.values()) {
    paint(chart, true)
    for (const svg of chart.node.querySelectorAll("svg.main-svg")) svg.setAttribute("viewBox", `0 0 ${chart.node._fullLayout.width} ${chart.node._fullLayout.height}`)
  }
})
window.addEventListener("afterprint", () => {
  for (const chart of charts.values()) {
    for (const svg of chart.node.querySelectorAll("svg.main-svg")) svg.removeAttribute("viewBox")
    paint(chart)
  }
})
