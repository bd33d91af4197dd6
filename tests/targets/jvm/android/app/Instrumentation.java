package android.app;

import android.content.Context;

/** What a test on a phone is run by. */
public class Instrumentation {
    public Context getTargetContext() { return new Context(); }
}
