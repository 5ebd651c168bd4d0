def get_device_uuid(device_idx: int) -> str:
    return f"CPU-{device_idx}"
