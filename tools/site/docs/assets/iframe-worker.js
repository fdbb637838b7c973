/* Browsers refuse web workers on pages opened from disk. There, this stands in for the search worker: the script runs
   in a hidden frame that has the two things the theme's worker uses, `postMessage` and `importScripts`. */
"use strict";

if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.title = "Search";
      this.frame.srcdoc = `<!doctype html><title>Search</title><script src="${new URL(url, document.baseURI)}"><\/script>`;
      this.frame.addEventListener("load", () => this.#ready(), { once: true });
      const scope = () => this.frame.contentWindow;
      const attach = () => {
        document.body.appendChild(this.frame);
        const inner = scope();
        inner.importScripts = (...urls) => urls.reduce((before, src) => before.then(() => new Promise((done, fail) => {
          const script = inner.document.createElement("script");
          Object.assign(script, { src, onload: done, onerror: fail });
          inner.document.body.appendChild(script);
        })), Promise.resolve());
        return inner;
      };
      attach();
    }

    #ready() {
      const inner = this.frame.contentWindow;
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.loaded = true;
      for (const data of this.waiting.splice(0)) this.postMessage(data);
    }

    postMessage(data) {
      if (!this.loaded) return void this.waiting.push(data);
      this.frame.contentWindow.dispatchEvent(new this.frame.contentWindow.MessageEvent("message", { data }));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
