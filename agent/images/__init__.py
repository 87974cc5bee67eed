"""Images of the node: references, import of archives, the records, and what is deleted when nothing needs it any more.

`agent.pods` and `cri.server` use `service.ImageService`; `agent.daemon` builds it.
"""
