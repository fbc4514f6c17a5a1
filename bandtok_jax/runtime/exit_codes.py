"""Exit codes that a training and its launcher agree on."""

RESTART_EXIT_CODE = 42  # the training asks to be started again; the default of xpk's --restart-on-exit-codes
