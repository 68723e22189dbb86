"""A task ties data, network, loss and sampling together; one file each, by name in TASKS."""

from .images import ImageTask
from .language import LanguageTask

TASKS = {"images": ImageTask, "language": LanguageTask}
