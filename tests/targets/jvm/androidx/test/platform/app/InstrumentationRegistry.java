package androidx.test.platform.app;

import android.app.Instrumentation;

/** Where a test on a phone finds the app. */
public final class InstrumentationRegistry {
    private InstrumentationRegistry() {}

    public static Instrumentation getInstrumentation() { return new Instrumentation(); }
}
