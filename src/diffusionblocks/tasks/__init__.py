"""A task ties data, network, loss and sampling together; one file each, by name in TASKS."""

from .images import ImageTask

TASKS = {"images": ImageTask}
