// One event stream a page, shared by everything on it that shows live runs. See dashboard/initscope_dashboard/live/event_stream.py for the events.

const MOST = 20000 // rows kept a run; a chart has long drawn the older ones
const PATIENCE = 400 // milliseconds
const members = new Set()
const runs = new Map() // run id -> what has come so far
let source = null
let open = ""
let scheduled = false
let asleep = false
const over = new Set() // runs that have ended since somebody asked for them

function blank() {
  return { steps: { x: [], loss: [], accuracy: [] }, epochs: { x: [], val_loss: [], val_accuracy: [] }, layers: null, state: null, position: null }
}

// Take part: `ids` are followed from the step `after(id)` on and `notify(ids, ended)` is called when something came.
// Returns [feed, leave]: feed(id) is what has come, leave() ends the part. `watch.changed()` is called when the runs on the disk are others than
// those that `watch.there()` stands for: one has come or gone.
export function join(ids, after, notify, watch = null) {
  const member = { ids, after, notify, watch }
  members.add(member)
  for (const id of ids) over.delete(id) // a run that is resumed is followed again
  schedule()
  return [
    (id) => runs.get(id),
    () => {
      members.delete(member)
      schedule()
    },
  ]
}

// Let the charts of one screen come and go before the stream is changed.
function schedule() {
  if (scheduled) return
  scheduled = true
  setTimeout(() => {
    scheduled = false
    connect()
  }, 30)
}

function connect() {
  const wanted = asleep ? [] : [...new Set([...members].flatMap((member) => member.ids))].filter((id) => !over.has(id)).sort()
  if (!asleep) for (const id of runs.keys()) if (!wanted.includes(id)) runs.delete(id)
  const watching = asleep ? [] : [...members].filter((member) => member.watch).map((member) => member.watch)
  const key = wanted.join() || (watching.length ? "*" : "")
  if (key === open) return
  source?.close()
  source = null
  open = key
  if (!key) return
  const query = new URLSearchParams()
  if (watching.length) query.append("there", watching[0].there())
  for (const id of wanted) {
    if (!runs.has(id)) runs.set(id, blank())
    const shown = [...members].filter((member) => member.ids.includes(id)).map((member) => member.after(id))
    const start = Math.min(...shown)
    query.append("run", runs.get(id).position ?? (Number.isFinite(start) ? `${id}:${start}` : `${id}:-1`))
  }
  source = new EventSource(`${new URL("../../api/stream", import.meta.url)}?${query}`)
  source.onmessage = (event) => receive(JSON.parse(event.data))
  source.addEventListener("runs", (event) => {
    const { there } = JSON.parse(event.data)
    // A launch from this very page brings the news by itself.
    setTimeout(() => [...members].forEach(({ watch }) => watch && watch.there() !== there && watch.changed()), PATIENCE)
  })
  source.addEventListener("end", (event) => {
    source?.close()
    source = null
    open = ""
    const { runs: ended } = JSON.parse(event.data)
    for (const id of ended) over.add(id)
    tell(ended, true)
    schedule()
  })
}

function append(rows, came) {
  for (const [name, values] of Object.entries(came)) rows[name].push(...values)
  const excess = rows.x.length - MOST
  if (excess > 0) for (const values of Object.values(rows)) values.splice(0, excess)
}

function receive(event) {
  const run = runs.get(event.run)
  if (!run) return
  if (event.steps) append(run.steps, event.steps)
  if (event.epochs) append(run.epochs, event.epochs)
  if (event.layers) run.layers = event.layers
  if (event.state) run.state = event.state
  run.position = event.position
  tell([event.run], false)
}

function tell(ids, ended) {
  const concerned = [...members].filter((member) => ids.some((id) => member.ids.includes(id)))
  concerned.forEach((member) => member.notify(ids, ended))
}

// A page nobody sees gives its connection back (a browser has six for all tabs) and goes on where it was when seen again.
let dozing = 0
document.addEventListener("visibilitychange", () => {
  clearTimeout(dozing)
  dozing = setTimeout(
    () => {
      asleep = document.hidden
      connect()
    },
    document.hidden ? 10000 : 0,
  )
})
