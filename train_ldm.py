from ldm.commands.cli import train_ldm

if __name__ == "__main__":
    train_ldm()
