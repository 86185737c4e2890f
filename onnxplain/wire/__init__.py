"""What goes over the wire: messages of both protocols, tensors to arrays and back, large tensors in pieces."""
