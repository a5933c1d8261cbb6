// Shows on each VCUT node what it did, and leaves it there: newer pages of ComfyUI take the text that
// a server sends away as soon as a run has succeeded. Nothing here is saved with a workflow.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { fillSlider } from './compare.js'

const WIDGET = 'vcut_lines'
const SLIDER = 'vcut_slider'
const STORE = 'vcut_told'
const ROW = 16 // pixels
const MARGIN = 4 // around the text, within its node

// workflow and node -> what the node said last, since this tab was opened
const told = new Map(JSON.parse(sessionStorage.getItem(STORE) ?? '[]'))
const keep = () => sessionStorage.setItem(STORE, JSON.stringify([...told]))
const inRun = new Set() // ids of the nodes that the run in progress has computed or found cached
const keyOf = (workflow, nodeId) => `${workflow ?? ''} ${nodeId}`

// A node in a subgraph has the ids of all subgraphs around it in front of its own: "7:2".
function findNode(executionId) {
  return String(executionId)
    .split(':')
    .reduce((graph, id, index, ids) => {
      const node = graph?.getNodeById(Number(id)) ?? graph?.getNodeById(id)
      return index === ids.length - 1 ? node : node?.subgraph
    }, app.graph)
}

function rowsOf(text, width) {
  const columns = Math.max(20, Math.floor((width - 12) / 7))
  return text.split('\n').reduce((rows, line) => rows + Math.max(1, Math.ceil(line.length / columns)), 0)
}

// Returns the element of the widget called name, which is made on first use. heightIn: from a width
// to the element's height, in pixels.
function elementOn(node, name, heightIn) {
  let widget = node.widgets?.find((widget) => widget.name === name)
  if (!widget) {
    const element = document.createElement('div')
    element.className = name
    const height = () => heightIn(node.size[0] - 2 * MARGIN, element) + 2 * MARGIN
    widget = node.addDOMWidget(name, name, element, {
      serialize: false, margin: MARGIN, getMinHeight: height, getMaxHeight: height,
    })
    widget.serialize = false
  }
  return widget.element
}

function show(node, { lines, videos }) {
  const text = elementOn(node, WIDGET, (width, { textContent }) => rowsOf(textContent, width) * ROW)
  Object.assign(text.style, {
    boxSizing: 'border-box', padding: '0 8px', overflow: 'hidden', font: `12px/${ROW}px sans-serif`,
    color: 'var(--input-text, #ddd)', whiteSpace: 'pre-wrap', overflowWrap: 'anywhere', userSelect: 'text',
  })
  text.textContent = lines.join('\n') // never as HTML: a text may hold what somebody typed
  if (videos) {
    const slider = elementOn(node, SLIDER, (width, { style }) => width / parseFloat(style.aspectRatio))
    slider.style.aspectRatio = videos.aspect_ratio
    fillSlider(slider, videos, () => remove(node, SLIDER))
  } else remove(node, SLIDER)
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
  node.setDirtyCanvas?.(true, true)
}

function remove(node, widget) {
  const index = node.widgets?.findIndex(({ name }) => name === widget) ?? -1
  if (index < 0) return
  if (node.removeWidget) node.removeWidget(node.widgets[index])
  else {
    node.widgets[index].onRemove?.()
    node.widgets.splice(index, 1)
  }
  node.setDirtyCanvas?.(true, true)
}

function eachNode(graph, prefix, visit) {
  for (const node of graph?.nodes ?? []) {
    visit(node, `${prefix}${node.id}`)
    if (node.subgraph) eachNode(node.subgraph, `${prefix}${node.id}:`, visit)
  }
}

// Lines of this workflow's earlier runs come back.
function restore() {
  eachNode(app.graph, '', (node, id) => {
    const detail = told.get(keyOf(app.graph.id, id))
    if (detail) show(node, detail)
  })
}

// A node whose outputs lead nowhere may be found cached, and has no part in the run all the same.
function isUsed(node) {
  const leads = node.outputs?.some(({ links }) => links?.length)
  return leads || node.constructor.nodeData?.output_node
}

// The host's events do not tell it, and another workflow may be open by the time the run ends.
async function workflowOf(promptId) {
  const get = async (address) => (await api.fetchApi(address)).json()
  try {
    // In this order: a run that ends in between moves from the queue to the history.
    const { queue_running: queue } = await get('/queue')
    const history = await get(`/history/${promptId}`)
    const prompt = queue.find(([, id]) => id === promptId) ?? history[promptId].prompt
    return prompt[3].extra_pnginfo.workflow.id ?? null
  } catch {
    return null // of a program's run, which has no workflow
  }
}

// A node that was bypassed, muted or left unconnected had no part in the run: its lines are old.
async function forgetOthers({ detail }) {
  const parts = new Set(inRun)
  const workflow = await workflowOf(detail.prompt_id)
  if (workflow === null || workflow !== app.graph.id) return
  eachNode(app.graph, '', (node, id) => {
    const hadPart = parts.has(id) && isUsed(node)
    if (!hadPart && told.delete(keyOf(app.graph.id, id))) [WIDGET, SLIDER].forEach((name) => remove(node, name))
  })
  keep()
}

let announced = null

// So that the server does not send the same text in ComfyUI's own way too.
async function announce() {
  if (!api.clientId || api.clientId === announced) return
  announced = api.clientId
  await api.fetchApi('/vcut/page', { method: 'POST', body: JSON.stringify({ client_id: announced }) })
}

app.registerExtension({
  name: 'VCUT.Lines',
  async setup() {
    api.addEventListener('vcut.lines', ({ detail }) => {
      const { workflow, node: nodeId } = detail
      told.set(keyOf(workflow, nodeId), detail)
      const node = workflow === null || workflow === app.graph.id ? findNode(nodeId) : null
      if (node?.type?.startsWith('VCUT_')) show(node, detail)
      keep()
    })
    api.addEventListener('vcut.run', () => {}) // for programs; newer pages complain of unknown ones
    api.addEventListener('execution_start', () => inRun.clear())
    api.addEventListener('execution_cached', ({ detail }) => detail.nodes.forEach((id) => inRun.add(String(id))))
    api.addEventListener('executing', ({ detail }) => inRun.add(String(detail)))
    api.addEventListener('execution_success', forgetOthers)
    api.addEventListener('reconnected', () => {
      announced = null
      announce()
    })
    api.addEventListener('status', announce)
    await announce()
  },
  afterConfigureGraph: restore,
})
