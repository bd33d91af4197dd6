package org.tensorflow.lite;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.MappedByteBuffer;
import java.util.LinkedHashMap;
import java.util.Map;
import standin.Recorded;

/** The part of LiteRT's Java interface that the classes of a package call; it gives recorded answers, or its inputs. */
public class Interpreter implements AutoCloseable {
    public static class Options {
        public Options setNumThreads(int threads) { return this; }
    }

    public Interpreter(ByteBuffer model, Options options) {
        // The real one refuses the same.
        if (!(model instanceof MappedByteBuffer) && (!model.isDirect() || model.order() != ByteOrder.nativeOrder())) {
            throw new IllegalArgumentException("Model ByteBuffer should be mapped, or direct and in native order");
        }
    }

    public void runSignature(Map<String, Object> inputs, Map<String, Object> outputs) {
        Map<String, byte[]> given = new LinkedHashMap<>();
        inputs.forEach((name, tensor) -> given.put(name, Recorded.bytes((ByteBuffer) tensor)));
        Map<String, byte[]> answers = Recorded.answers(given);
        outputs.forEach((name, buffer) -> ((ByteBuffer) buffer).put(answers.get(name)));
    }

    @Override
    public void close() {}
}
