package android.content;

import android.content.res.AssetManager;

/** A context with assets and nothing else. */
public class Context {
    public AssetManager getAssets() { return new AssetManager(); }
}
