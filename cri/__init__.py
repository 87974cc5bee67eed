"""The Kubernetes Container Runtime Interface: messages, server edge and client."""
