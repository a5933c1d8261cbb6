// Two videos that play in one place, divided by a line that follows the pointer or the arrow keys.
import { api } from '../../scripts/api.js'

// Both videos lie beside each other in one file, and elements that show one address share its
// animation: so they cannot fall out of step.
const STYLE = `
  .vcut_slider { position: relative; overflow: hidden; touch-action: pan-y; cursor: ew-resize; }
  .vcut_slider > * { position: absolute; inset: 0; margin: 0; }
  .vcut_slider > div { background-size: 200% 100%; }
  .vcut_slider > .vcut_b { background-position: 100% 0; }
  .vcut_slider > .vcut_a { clip-path: inset(0 calc(100% - var(--at)) 0 0); }
  .vcut_slider > hr { left: calc(var(--at) - 1px); width: 2px; height: auto; border: 0; background: #fff;
    box-shadow: 0 0 2px #000; }
  .vcut_slider:focus-within > hr { box-shadow: 0 0 0 2px #1769aa; }
  .vcut_slider > input { opacity: 0; pointer-events: none; }
  .vcut_slider span { position: absolute; top: 4px; max-width: 45%; padding: 0 4px; font: 12px/18px sans-serif;
    color: #fff; background: #000b; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
  .vcut_slider span:empty { display: none; }
  .vcut_a > span { left: 4px; }
  .vcut_b > span { right: 4px; }
`

// Fills an element of class vcut_slider. videos: file (what /view asks for) and labels of both.
// onGone is called when the server has the file no more.
export function fillSlider(element, { file, labels }, onGone) {
  const address = api.apiURL(`/view?${new URLSearchParams(file)}`)
  const style = document.createElement('style')
  style.textContent = STYLE
  const [a, b] = ['vcut_a', 'vcut_b'].map((name, index) => {
    const half = document.createElement('div')
    half.className = name
    half.style.backgroundImage = `url("${address}")`
    half.append(document.createElement('span'))
    half.firstChild.textContent = labels[index] // never as HTML: somebody typed it
    return half
  })
  const range = Object.assign(document.createElement('input'), { type: 'range', step: 1 })
  range.ariaLabel = labels.join(' | ')
  const move = (percent) => {
    range.value = percent
    element.style.setProperty('--at', `${percent}%`)
  }
  move(parseFloat(element.style.getPropertyValue('--at') || 50))
  range.oninput = () => move(Number(range.value))
  range.onkeydown = (event) => event.stopPropagation() // the page moves nodes with the arrow keys
  element.onpointermove = ({ clientX }) => {
    const { left, width } = element.getBoundingClientRect()
    move(Math.min(100, Math.max(0, (100 * (clientX - left)) / width)))
  }
  element.onpointerdown = (event) => event.button === 0 && event.stopPropagation() // not the node
  element.onclick = () => range.focus({ preventScroll: true })
  element.replaceChildren(style, b, a, document.createElement('hr'), range)
  Object.assign(new Image(), { onerror: onGone }).src = address
}
