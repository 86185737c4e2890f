"""What a call means: messages to what the engine is asked, and its answers to messages."""
