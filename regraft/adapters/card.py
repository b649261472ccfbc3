"""placeholder"""


def write_adapter_card(folder, record):
    pass


def write_graft_card(folder, record):
    pass
