"""placeholder"""


def write_adapter_card(folder, record):
    pass
