// The search runs in a Worker, which a browser does not start for a page that was opened from a folder. A hidden frame
// takes its place: the script runs in it, and messages are events of either side.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const scope = this.frame.contentWindow
      const from = new URL(url, document.baseURI)
      const load = (source) =>
        new Promise((done, failed) => {
          const script = scope.document.createElement("script")
          script.src = new URL(source, from)
          script.onload = done
          script.onerror = () => failed(new Error(`${source} does not load`))
          scope.document.body.append(script)
        })
      scope.importScripts = (...sources) => sources.reduce((last, next) => last.then(() => load(next)), Promise.resolve())
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      this.ready = load(from)
      this.ready.catch((error) => this.dispatchEvent(new ErrorEvent("error", { error })))
    }

    postMessage(data) {
      const scope = this.frame.contentWindow
      this.ready.then(() => scope.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
