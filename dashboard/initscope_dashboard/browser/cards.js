// A card a run: state, progress, loss, speed, time left; and the sidebar's rows. Kept current by the page's event stream without a rerun.
import { TOKENS } from "./settings.js"
import { number, style, themeOf } from "./theme.js"
import { join } from "./live.js"

const REST = 1000 // milliseconds
const boards = new Map() // parentElement -> board

function element(tag, className, parent) {
  const made = document.createElement(tag)
  if (className) made.className = className
  parent.append(made)
  return made
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–"
  const whole = Math.round(seconds)
  if (whole < 60) return `${whole} s`
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`
}

const fixed = (value) => (value === null || value === undefined ? "–" : value >= 0.001 && value < 1000 ? value.toPrecision(3) : number(value))

const LIVE = new Set(["queued", "running", "stopping", undefined])

function steps({ step, total_steps: total, status, outcome }) {
  const done = step.toLocaleString("en-US")
  if (!total) return done
  const early = status === "finished" && step < total && outcome !== "diverged"
  return `${done} of ${total.toLocaleString("en-US")}${early ? ", settled" : ""}`
}

const FACTS = [
  [() => "step", steps],
  [(s) => (s.validated ? "validation loss" : "loss"), (s) => (s.broken ? "NaN" : fixed(s.loss))],
  [(s) => (s.validated ? "validation accuracy" : "accuracy"), (s) => (s.accuracy === null || s.accuracy === undefined ? "–" : `${(100 * s.accuracy).toPrecision(3)} %`)],
  [(s) => s.speed_unit ?? "steps/s", (s) => (s.images_per_second === null ? null : number(s.images_per_second))],
  [() => "time left", (s) => (s.seconds_left === null ? null : duration(s.seconds_left))],
]

function progressBar(root, name) {
  const bar = element("div", "bar", root)
  bar.setAttribute("role", "progressbar")
  bar.setAttribute("aria-valuemin", "0")
  bar.setAttribute("aria-valuemax", "100")
  bar.setAttribute("aria-label", `progress of ${name}`)
  return { bar, fill: element("i", "", bar) }
}

function showProgress({ bar, fill }, state) {
  const share = state.total_steps ? Math.min(1, state.step / state.total_steps) : 0
  fill.style.width = `${100 * share}%`
  bar.setAttribute("aria-valuenow", String(Math.round(100 * share)))
}

function build(board, card) {
  const root = element("article", "initscope-card", board.root)
  const header = element("header", "", root)
  const name = element("span", "name", header)
  name.textContent = name.title = card.name
  const state = element("span", "state", header)
  const drawn = progressBar(root, card.name)
  const list = element("dl", "", root)
  const values = FACTS.map(([title, read]) => {
    const pair = element("div", "", list)
    return [pair, element("dt", "", pair), element("dd", "", pair), title, read]
  })
  return { root, state, ...drawn, values, shown: card.state }
}

function show(board, card) {
  const { marks } = board.data
  const drawn = board.cards.get(card.run)
  const state = board.feed?.(card.run)?.state ?? card.state
  const tokens = TOKENS[themeOf(board.parent).dark ? "dark" : "light"]
  const ended = ["finished", "stopped"].includes(state.status) && marks[state.outcome]
  const mark = ended || marks[state.status] || { shape: "?", word: state.status, color: "muted" }
  drawn.root.style.setProperty("--card-color", tokens[card.color])
  drawn.root.style.setProperty("--state-color", tokens[mark.color])
  const words = `${mark.shape} ${mark.word}`
  if (drawn.state.textContent !== words) drawn.state.textContent = words
  showProgress(drawn, state)
  for (const [pair, term, value, title, read] of drawn.values) {
    const text = read(state)
    pair.hidden = text === null
    if (term.textContent !== title(state)) term.textContent = title(state)
    if (text !== null && value.textContent !== text) value.textContent = text
  }
}

function showAll(board) {
  for (const card of board.data.cards) show(board, card)
}

// Follow the runs of `data.stream` for a board; `behind` is the last step it shows of a run.
function follow(board, notify, watch) {
  const key = board.data.stream.join()
  if (key === board.key) return
  board.leave?.()
  board.key = key
  board.leave = board.feed = null
  const behind = (run) => board.data.states[run].step - 1
  if (key || watch) [board.feed, board.leave] = join(board.data.stream, behind, notify, watch)
}

function enter(parent, tag, className) {
  style()
  if (!boards.has(parent)) boards.set(parent, { parent, root: element(tag, className, parent), cards: new Map() })
  return boards.get(parent)
}

function leaving(board) {
  return () => {
    board.leave?.()
    clearTimeout(board.timer)
    clearTimeout(board.asking)
    boards.delete(board.parent)
    board.root.remove()
  }
}

// Ask for a rerun. It would close a dialog that somebody has open, and waits for its end.
function ask(board, what, value) {
  clearTimeout(board.asking)
  if (document.querySelector("[data-testid=stDialog]")) board.asking = setTimeout(() => ask(board, what, value), 500)
  else board.send(what, value)
}

export function cards({ data, parentElement, setTriggerValue }) {
  const board = enter(parentElement, "div", "initscope-cards")
  const ids = data.cards.map((card) => card.run + card.name).join()
  const states = Object.fromEntries(data.cards.map((card) => [card.run, card.state]))
  Object.assign(board, { data: { ...data, states }, send: setTriggerValue })
  if (ids !== board.ids) {
    board.root.replaceChildren()
    board.ids = ids
    board.cards = new Map(data.cards.map((card) => [card.run, build(board, card)]))
  }
  follow(board, (runs, ended) => {
    showAll(board)
    // A rerun brings what only the page can show: the end of a log, the outcome in the list, buttons that are no longer needed.
    const news = runs.filter((run) => ended || !LIVE.has(board.feed(run)?.state?.status))
    if (unheard(news, "ended")) ask(board, "ended", news)
  })
  showAll(board)
  return leaving(board)
}

// -- the rows in the sidebar

const heard = new Set() // what a rerun has been asked for: one is enough, whichever board saw it first

function unheard(runs, what) {
  const news = runs.map((run) => `${run} ${what}`).filter((item) => !heard.has(item))
  for (const item of news) heard.add(item)
  return news.length > 0
}

function left(state) {
  if (state.status === "stopping") return state.status
  if (state.status === "queued") return state.phase ?? state.status // what no node of a cluster has at present
  if (!state.step) return state.phase ?? "starting"
  return `${duration(state.seconds_left)} left`
}

function row(board, { run, name }) {
  const root = element("div", "initscope-progress", board.root)
  const words = element("div", "words", root)
  const drawn = progressBar(root, name)
  const stop = board.data.stops ? element("button", "", root) : null
  if (stop) {
    Object.assign(stop, { type: "button", textContent: "Stop", title: "Stop after the current step. The rows and a checkpoint are kept; it can be resumed." })
    stop.addEventListener("click", () => {
      stop.disabled = true
      board.send("stop", run)
    })
  }
  return { words, stop, ...drawn }
}

function showRows(board) {
  for (const { run, name, state: known } of board.data.rows) {
    const drawn = board.cards.get(run)
    const state = board.feed?.(run)?.state ?? known
    const text = `${board.data.marks[state.status]?.shape ?? "?"} ${name} · ${left(state)}`
    if (drawn.words.textContent !== text) drawn.words.textContent = text
    if (drawn.stop) drawn.stop.hidden = state.status === "stopping"
    showProgress(drawn, state)
  }
}

// Have the chart library read (half a second of one core) while nobody waits for it: a launch jumps to charts.
let prepared = false
function prepare() {
  if (prepared) return
  prepared = true
  const idle = window.requestIdleCallback ?? ((act) => setTimeout(act, 0))
  const read = () => import("./plot.js").then(({ plotly }) => plotly()).catch(() => {}) // whoever draws tries again, and says what is wrong
  setTimeout(() => idle(read), REST)
}

export function progress({ data, parentElement, setTriggerValue }) {
  const board = enter(parentElement, "div", "initscope-progresses")
  const states = Object.fromEntries(data.rows.map(({ run, state }) => [run, state]))
  Object.assign(board, { data: { ...data, states }, send: setTriggerValue })
  const ids = [...data.stream, data.more, data.stops].join()
  if (ids !== board.ids) {
    board.root.replaceChildren()
    board.ids = ids
    board.cards = new Map(data.rows.map((each) => [each.run, row(board, each)]))
    if (data.more > 0) element("p", "", board.root).textContent = `and ${data.more} more that wait`
  }
  for (const run of data.stream) heard.delete(`${run} ended`) // live again: it was resumed
  follow(
    board,
    (runs, ended) => {
      showRows(board)
      const told = (run) => board.feed?.(run)?.state
      const over = runs.filter((run) => ended || !LIVE.has(told(run)?.status))
      const begun = runs.filter((run) => !board.data.states[run]?.step && told(run)?.step)
      if ([unheard(over, "ended"), unheard(begun, "begun")].includes(true)) ask(board, "changed", Date.now())
    },
    { there: () => board.data.there, changed: () => ask(board, "changed", Date.now()) },
  )
  showRows(board)
  if (data.stops) prepare()
  return leaving(board)
}

// -- the sentence over the page: as dashboard/initscope_dashboard/content/headlines.py `live` says it, at most every two seconds

function said(board) {
  const now = board.data.runs.map(({ run, name, state }) => ({ name, ...(board.feed?.(run)?.state ?? state) }))
  if (!now.length) return board.data.text
  if (now.length <= 2) return `${now.map((run) => `${run.name} ${run.says}`).join("; ")}.`
  const words = now.map((run) => run.standing)
  return `Of ${now.length} runs: ${[...new Set(words)].map((word) => `${words.filter((w) => w === word).length} ${word}`).join(", ")}.`
}

function say(board) {
  const text = said(board)
  if (board.root.textContent !== text) board.root.textContent = text
}

export function headline({ data, parentElement }) {
  const board = enter(parentElement, "h1", "initscope-headline")
  const states = Object.fromEntries(data.runs.map((run) => [run.run, run.state]))
  board.data = { ...data, states }
  follow(board, (runs, ended) => {
    if (ended) say(board)
    else board.timer ??= setTimeout(() => {
      board.timer = null
      say(board)
    }, 2000)
  })
  say(board)
  return leaving(board)
}
