"""Who trains when: the launcher, its queue, the supervisor that works it off. No torch."""
