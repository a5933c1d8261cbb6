"""JavaScript that browser tests run in ComfyUI's page."""

USE_TINY_MODEL = """() => {
    const {graph} = window.app
    const find = type => graph.nodes.find(node => node.type === type)
    const loader = find('ImageOnlyCheckpointLoader')
    const tiny = LiteGraph.createNode('VCUT_LoadTinySVD')
    graph.add(tiny)
    tiny.pos = [...loader.pos]
    tiny.setSize([...loader.size])
    loader.outputs.forEach((output, number) => {
        for (const link of [...output.links].map(id => graph.links.get(id)))
            tiny.connect(number, graph.getNodeById(link.target_id), link.target_slot)
    })
    graph.remove(loader)
    const set = (type, values) => graph.nodes.filter(node => node.type === type)
        .flatMap(node => node.widgets).forEach(widget => {
            if (widget.name in values) widget.value = values[widget.name]
        })
    set('SVD_img2vid_Conditioning', {width: 128, height: 128, video_frames: 4})
    set('KSampler', {steps: 4})
    window.runEnded = new Promise(end => {
        for (const event of ['execution_success', 'execution_error', 'execution_interrupted'])
            window.app.api.addEventListener(event, () => end(event), {once: true})
    })
}"""

# Queues what is in the page; returns the event that ends the run.
RUN = """async () => {
    const ended = new Promise(end => {
        for (const event of ['execution_success', 'execution_error', 'execution_interrupted'])
            window.app.api.addEventListener(event, () => end(event), {once: true})
    })
    await window.app.queuePrompt(0)
    return ended
}"""
