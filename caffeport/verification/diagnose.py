def diagnose(*a):
    return []
