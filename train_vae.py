from ldm.commands.cli import train_vae

if __name__ == "__main__":
    train_vae()
