"""Jupyter: a cell that runs again opens again. Keep the bus in one cell, close what was there before.

What follows is a notebook, a cell between two lines of `# %%`.
"""

# %% once, or whenever the kernel was restarted
import shmbus

if "bus" in globals():
    bus.close()  # type: ignore[has-type,used-before-def]  # noqa: F821
bus = shmbus.Bus("roads-notebook")
PRICES = shmbus.Topic("prices", float)
prices = bus.subscriber(PRICES)

# %% a cell that may run as often as you like: a publisher without a name is never in its own way
with bus.publisher(PRICES) as pub:
    pub.publish(1.5)

# %% what is there now, without waiting
while (price := prices.try_receive()) is not None:
    print(price)

# %% the end
bus.close()
