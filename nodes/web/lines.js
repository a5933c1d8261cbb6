// Shows on each VCUT node what it did, and leaves it there: newer pages of ComfyUI take the text that
// a server sends away as soon as a run has succeeded. Nothing here is saved with a workflow.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

const WIDGET = 'vcut_lines'
const ROW = 16 // pixels
const MARGIN = 4 // around the text, within its node

const texts = new Map() // workflow and node -> what the node said last, since this page was opened
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
  const columns = Math.max(20, Math.floor((width - 20) / 7))
  return text.split('\n').reduce((rows, line) => rows + Math.max(1, Math.ceil(line.length / columns)), 0)
}

function show(node, text) {
  let widget = node.widgets?.find(({ name }) => name === WIDGET)
  if (!widget) {
    const element = document.createElement('div')
    Object.assign(element.style, {
      boxSizing: 'border-box', padding: '0 8px', overflow: 'hidden', font: `12px/${ROW}px sans-serif`,
      color: 'var(--input-text, #ddd)', whiteSpace: 'pre-wrap', overflowWrap: 'anywhere', userSelect: 'text',
    })
    element.className = WIDGET
    const height = () => rowsOf(element.textContent, node.size[0]) * ROW + 2 * MARGIN
    widget = node.addDOMWidget(WIDGET, WIDGET, element, {
      serialize: false, margin: MARGIN, getMinHeight: height, getMaxHeight: height,
    })
    widget.serialize = false
  }
  widget.element.textContent = text // never as HTML: a text may hold what somebody typed
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
  node.setDirtyCanvas?.(true, true)
}

function hide(node) {
  const index = node.widgets?.findIndex(({ name }) => name === WIDGET) ?? -1
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
    const text = texts.get(keyOf(app.graph.id, id))
    if (text !== undefined) show(node, text)
  })
}

// A node whose outputs lead nowhere may be found cached, and has no part in the run all the same.
function isUsed(node) {
  const leads = node.outputs?.some(({ links }) => links?.length)
  return leads || node.constructor.nodeData?.output_node
}

let running = Promise.resolve(null) // the workflow of the run in progress, null where it is not known

// The host's events do not tell it, and another workflow may be open by the time the run ends.
async function runningWorkflow() {
  try {
    const queue = await (await api.fetchApi('/queue')).json()
    return queue.queue_running[0]?.[3]?.extra_pnginfo?.workflow?.id ?? null
  } catch {
    return null
  }
}

// A node that was bypassed, muted or left unconnected had no part in the run: its lines are old.
async function forgetOthers() {
  const workflow = await running
  if (workflow === null || workflow !== app.graph.id) return
  eachNode(app.graph, '', (node, id) => {
    const hadPart = inRun.has(id) && isUsed(node)
    if (!hadPart && texts.delete(keyOf(app.graph.id, id))) hide(node)
  })
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
      const { workflow, node: nodeId, lines } = detail
      const text = lines.join('\n')
      texts.set(keyOf(workflow, nodeId), text)
      const node = workflow === null || workflow === app.graph.id ? findNode(nodeId) : null
      if (node?.type?.startsWith('VCUT_')) show(node, text)
    })
    api.addEventListener('vcut.run', () => {}) // for programs; newer pages complain of unknown ones
    api.addEventListener('execution_start', () => {
      inRun.clear()
      running = runningWorkflow()
    })
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
