"""Who runs when: admission, queues, slots, open sessions."""
